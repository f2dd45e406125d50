"""A new run that starts from the weights of another, and from nothing else of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import load, runs, write_config
from torch import nn

from itmkit.cli import main
from itmkit.nn import HubnessCorrection
from itmkit.runs.initial_weights import load_initial_weights

LAST = "checkpoints/last.ckpt"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["itmkit"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folders of runs of a system, trained for an epoch; not to be written to."""
    made: dict[str, Path] = {}

    def make(system: str) -> Path:
        if system not in made:
            folder = tmp_path_factory.mktemp(system)
            config = write_config(folder, system, max_epochs=1)
            main(["fit", f"--config={config}", f"--trainer.default_root_dir={folder / 'runs'}"])
            (made[system],) = runs(folder)
        return made[system]

    return make


def fit(system: str, *words: str, **trainer: Any) -> Path:
    """Train anew for an epoch; the folder of the run."""
    config = write_config(Path(), system, **({"max_epochs": 1} | trainer))
    main(["fit", f"--config={config}", *words])
    return runs(Path())[-1]


def refusal(capsys: pytest.CaptureFixture[str], system: str, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        fit(system, *words)
    assert stop.value.code == 2
    assert not Path("runs").exists()
    (line,) = (li for li in capsys.readouterr().err.splitlines() if "itmkit: error:" in li)
    return line.removeprefix("itmkit: error: ")


@pytest.mark.parametrize("system", ["MATE", "DAIM", "TVRN"])
def test_weights_are_those_and_all_else_starts_anew(
    system: str, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trained(system)
    still = "--model.optimizer.lr=0.0"
    folder = fit(system, f"--init_from={source}", still, "--untrained=true", train=8)
    best, last = load(source / "checkpoints/best.ckpt"), load(folder / LAST)
    assert last["global_step"] == 6
    changes = {"queue.image", "queue.text", "queue.ids", "score_loss.margin"}
    moved = ("running_mean", "running_var", "num_batches_tracked", "_bank", "centres")
    for name, value in best["state_dict"].items():
        if name not in changes and not name.endswith(moved):
            torch.testing.assert_close(last["state_dict"][name], value, rtol=1e-6, atol=0, msg=name)
    if system == "MATE":  # as many as this run has seen
        assert (last["state_dict"]["queue.ids"] >= 0).sum() == len(last["state_dict"]["queue.ids"])
    out = capsys.readouterr().out
    assert "\ninitial " in out
    assert "left out" not in out
    path = (source / "checkpoints/best.ckpt").resolve()
    assert any(line.startswith(f"weights of {path}: ") for line in out.splitlines())


def test_queue_and_margin_are_of_the_new_run(trained: Any) -> None:
    source = load(trained("MATE") / LAST)["state_dict"]
    assert (source["queue.ids"] >= 0).all()
    folder = fit("MATE", f"--init_from={trained('MATE')}", max_epochs=-1, max_steps=1)
    queue = load(folder / LAST)["state_dict"]["queue.ids"]
    assert (queue >= 0).sum() == 12  # two views of a batch


def test_a_plain_checkpoint_of_lightning(trained: Any, tmp_path: Path) -> None:
    content = load(trained("TVRN") / LAST)
    weights = {"state_dict": content["state_dict"], "system": "TVRN"}
    torch.save(weights, "plain.ckpt")
    folder = fit("TVRN", "--init_from=plain.ckpt", "--model.optimizer.lr=0.0")
    name = "text_encoder.embedding.weight"
    assert load(folder / LAST)["state_dict"][name].equal(content["state_dict"][name])


def test_error_word_embedding_of_another_size(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--init_from={trained('TVRN')}", "--model.text_encoder.vocab_size=70"]
    line = refusal(capsys, "TVRN", *words)
    assert "does not fit TVRN: text_encoder.embedding.weight ((38, 16), expected (70, 16))" in line
    assert line.endswith("--init_strict false leaves out what does not fit")
    fit("TVRN", *words, "--init_strict=false")
    out = capsys.readouterr().out
    assert "left out: text_encoder.embedding.weight ((38, 16), expected (70, 16))\n" in out


def test_error_word_embedding_of_other_words(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    content = load(trained("TVRN") / LAST)
    content["ImageTextData"]["vocabulary"][-1] = "zebra"
    torch.save(content, "zebra.ckpt")
    words = ["--init_from=zebra.ckpt"]
    line = refusal(capsys, "TVRN", *words)
    count = len(content["ImageTextData"]["vocabulary"])
    assert (
        f"does not fit TVRN: text_encoder.embedding.weight (rows of {count} words, of which "
        f"{count - 1} are of the {count} of the data); " in line
    )
    folder = fit("TVRN", *words, "--init_strict=false", "--model.optimizer.lr=0.0")
    assert "left out: text_encoder.embedding.weight" in capsys.readouterr().out
    name, own = "text_encoder.embedding.weight", load(folder / LAST)
    assert not content["state_dict"][name].equal(own["state_dict"][name])
    assert "zebra" not in own["ImageTextData"]["vocabulary"]


@pytest.mark.parametrize(("saved", "size"), [(0, 5), (3, 5), (5, 5), (5, 0)])
def test_a_bank_of_hubs_need_not_fit(
    saved: int, size: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a model without a correction, of another size, or of the same; or in one without."""

    def model(size: int, value: float) -> nn.ModuleDict:
        parts: dict[str, nn.Module] = {"linear": nn.Linear(2, 2)}
        if size:
            correction = HubnessCorrection(size, neighbours=1)
            correction.complete(2)
            correction.fill(*torch.tensor([[[1.0, 0.0]], [[value, (1 - value**2) ** 0.5]]]))
            parts["hubs"] = correction
        return nn.ModuleDict(parts)

    old, new = model(saved, 0.5), model(size, 0.75)
    load_initial_weights("old.ckpt", {"state_dict": old.state_dict()}, new)
    assert new["linear"].weight.equal(old["linear"].weight)
    if size:
        assert new["hubs"].centres.tolist() == [0.5 if size == saved else 0.75] * 2
    assert ("left out: hubs.image_bank" in capsys.readouterr().out) == (size != saved)


def test_another_system_where_not_all_must_fit(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--init_from={trained('MATE')}"]
    line = refusal(capsys, "DAIM", *words)
    assert line.endswith("is of the system MATE; expected DAIM")
    folder = fit("DAIM", *words, "--init_strict=false", "--model.optimizer.lr=0.0")
    name = "text_encoder.embedding.weight"
    source, own = load(trained("MATE") / LAST), load(folder / LAST)
    assert source["state_dict"][name].equal(own["state_dict"][name])


def test_error_both_ways_to_start(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = trained("TVRN")
    line = refusal(capsys, "TVRN", f"--init_from={source}", f"--ckpt_path={source}")
    assert line.startswith("ckpt_path is '")
    assert "; expected one: ckpt_path goes on with a run, init_from starts a new one" in line


@pytest.mark.filterwarnings("ignore:WarmupCosine. length was")
def test_run_that_started_from_weights_can_be_resumed_and_measured(trained: Any) -> None:
    half = fit("TVRN", f"--init_from={trained('TVRN')}")
    main(["fit", f"--ckpt_path={half}", "--trainer.max_epochs=2"])
    assert load(runs(Path())[-1] / LAST)["epoch"] == 1
    main(["test", f"--ckpt_path={half}"])
    assert (runs(Path())[-1] / "metrics.json").is_file()


def test_error_of_another_command(trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["test", "--config=tvrn/shapes", f"--init_from={trained('TVRN')}"])
    assert "init_from is an option of fit; expected --ckpt_path for test" in capsys.readouterr().err
