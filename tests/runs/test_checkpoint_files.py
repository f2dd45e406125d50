"""A run goes on from a checkpoint or a run's folder, on the data it was made on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_runs import load

from itmkit.cli import main
from itmkit.systems import load_run

CONFIG: dict[str, Any] = {
    "model": {"class_path": "tiny_matcher.TinyMatcher", "init_args": {"rate": 0.3}},
    "data": {
        "class_path": "itmkit.data.ImageTextData",
        "init_args": {
            "dataset": {"class_path": "tiny_matcher.TinyDataset", "init_args": {}},
            "batch_size": 2,
            "vocabulary_min_count": 1,
        },
    },
    "trainer": {
        "max_epochs": 2,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
    "untrained": False,
    "name": "tiny",
}
OTHER = "--data.dataset.init_args.prefixes="


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["itmkit"])
    Path("tiny.yaml").write_text(yaml.safe_dump(CONFIG))


def run(*words: str) -> Path:
    """Run a command; the folder it made."""
    before = set(Path("runs").glob("*/2*"))
    main(list(words))
    (folder,) = set(Path("runs").glob("*/2*")) - before
    return folder


def fit(*words: str) -> Path:
    return run("fit", "--config", "tiny.yaml", *words)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line of a command that is refused, of which nothing is left."""
    before = set(Path("runs").rglob("*"))
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    assert stop.value.code == 2
    assert set(Path("runs").rglob("*")) == before
    (line,) = (li for li in capsys.readouterr().err.splitlines() if "itmkit: error:" in li)
    return line.removeprefix("itmkit: error: ")


# -------------------------------------------------------------------------- the folder of a run


@pytest.mark.parametrize("config", [[], ["--config", "tiny.yaml"]])
@pytest.mark.parametrize("given", ["folder", "runs/tiny/latest"])
def test_fit_goes_on_with_the_last_checkpoint_of_a_folder(given: str, config: list[str]) -> None:
    half = fit("--model.rate=0.2", "--data.batch_size=4")
    given = str(half) if given == "folder" else given
    rest = run("fit", *config, "--ckpt_path", given, "--trainer.max_epochs=3")
    assert load(rest / "checkpoints/last.ckpt")["epoch"] == 2
    saved = yaml.safe_load((rest / "config.yaml").read_text())
    assert saved["ckpt_path"] == str(half / "checkpoints/last.ckpt")
    assert saved["trainer"]["max_epochs"] == 3  # the command line wins
    assert saved["model"]["init_args"]["rate"] == (0.3 if config else 0.2)
    assert rest.parent == half.parent


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
@pytest.mark.parametrize("given", ["runs/tiny/latest", "runs/tiny/latest/checkpoints/best.ckpt"])
def test_measured_without_a_configuration(command: str, given: str) -> None:
    whole = fit("--trainer.max_epochs=6", "--model.rate=2.0")
    folder = run(command, "--ckpt_path", given)
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["ckpt_path"] == str(whole / "checkpoints/best.ckpt")
    assert saved["model"]["init_args"]["rate"] == 2.0
    if command != "predict":
        stage = {"validate": "val", "test": "test"}[command]
        rsum = json.loads((folder / "metrics.json").read_text())[f"{stage}/rsum"]
        assert rsum == json.loads((whole / "metrics.json").read_text())["val/rsum"]


def test_best_of_a_folder_may_have_a_name_of_its_own() -> None:
    names = ["--checkpoint.filename={epoch}-{val/rsum:.0f}", "--checkpoint.save_top_k=2"]
    whole = fit("--trainer.max_epochs=6", "--model.rate=2.0", *names)
    states = load(whole / "checkpoints/last.ckpt")["callbacks"]
    best = next(one for name, one in states.items() if name.startswith("BestCheckpoint"))
    folder = run("test", "--ckpt_path", str(whole))
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert Path(saved["ckpt_path"]).resolve() == Path(best["best_model_path"]).resolve()
    model, _ = load_run(whole)
    weights = load(Path(best["best_model_path"]))["state_dict"]
    assert all(value.equal(weights[name]) for name, value in model.state_dict().items())


def test_error_folder_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    line = refusal(capsys, "fit", "--config=tiny.yaml", "--ckpt_path=empty")
    assert line == "ckpt_path 'empty' has no checkpoints/last.ckpt"
    line = refusal(capsys, "test", "--config=tiny.yaml", "--ckpt_path=empty")
    assert line == "ckpt_path 'empty' has no checkpoints/best.ckpt or last.ckpt"


def test_error_no_checkpoint_and_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "test", "--ckpt_path", "runs/nope/latest")
    assert line == "ckpt_path 'runs/nope/latest' is not a file or the folder of a run"


def test_error_checkpoint_of_weights_alone(capsys: pytest.CaptureFixture[str]) -> None:
    folder = fit("--checkpoint.save_weights_only=true")
    best = str(folder / "checkpoints/best.ckpt")
    line = refusal(capsys, "fit", "--config=tiny.yaml", "--ckpt_path", best)
    assert line.startswith(f"ckpt_path '{best}' holds weights alone, without callbacks; ")
    assert line.endswith("start from its weights alone with --init_from")
    run("test", "--ckpt_path", best)


# -------------------------------------------------------------------------------- other data


def test_error_best_score_of_other_validation_data(capsys: pytest.CaptureFixture[str]) -> None:
    half = fit()
    line = refusal(
        capsys, "fit", "--config=tiny.yaml", "--ckpt_path", str(half), f"{OTHER}{{val: 'red '}}"
    )
    assert "was validated on other images or captions than those of the split 'val'" in line
    assert line.endswith("start from its weights alone with --init_from")
    # and measured, it may be on any data
    run("test", "--config=tiny.yaml", "--ckpt_path", str(half), f"{OTHER}{{val: 'red '}}")


def test_other_training_data_is_warned_of() -> None:
    half = fit()
    words = ["--trainer.max_epochs=3", f"{OTHER}{{train: 'red '}}"]
    with pytest.warns(UserWarning, match="was trained on other images or captions"):
        fit("--ckpt_path", str(half), *words)


def test_the_same_data_is_not_warned_of(recwarn: pytest.WarningsRecorder) -> None:
    half = fit()
    fit("--ckpt_path", str(half), "--trainer.max_epochs=3")
    assert not [one for one in recwarn if "was trained on other" in str(one.message)]


# ------------------------------------------------------------------------------- what is told


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--data.val_split=null"], "no validation ran"),
        (["--trainer.limit_val_batches=0"], "no validation ran"),
        (["--checkpoint.save_top_k=0"], "checkpoint.save_top_k is 0"),
    ],
)
def test_without_a_best_checkpoint_the_result_is_named(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fit(*words)
    last = (folder / "checkpoints/last.ckpt").resolve()
    assert (
        f"there is no best.ckpt ({why}); the weights at the end are in {last}"
        in capsys.readouterr().out.replace(str(folder), str(folder.resolve()))
    )
    assert last.is_file()


def test_a_resumed_run_has_all_of_its_max_time(capsys: pytest.CaptureFixture[str]) -> None:
    half = fit("--trainer.max_time=00:00:10:00")
    checkpoint = half / "checkpoints/last.ckpt"
    content = load(checkpoint)
    content["callbacks"]["Timer"]["time_elapsed"]["train"] = 700.0
    torch.save(content, checkpoint)
    rest = fit("--ckpt_path", str(half), "--trainer.max_time=00:00:10:00", "--trainer.max_epochs=3")
    assert load(rest / "checkpoints/last.ckpt")["epoch"] == 2
    assert "nothing was trained" not in capsys.readouterr().out


def test_nothing_left_to_train_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    half = fit()
    fit("--ckpt_path", str(half))
    told = "nothing was trained: the run was at step 4 already (trainer.max_epochs 2, "
    assert told in capsys.readouterr().out


# ----------------------------------------------------------------- names with folders in them


def test_best_checkpoints_in_folders_of_their_own_go_along() -> None:
    names = ["--checkpoint.filename={epoch}-{val/rsum:.0f}", "--checkpoint.save_top_k=3"]
    whole = fit("--trainer.max_epochs=8", "--model.rate=2.0", *names)
    half = fit("--trainer.max_epochs=5", "--model.rate=2.0", *names)
    moved = Path("moved")
    shutil.move(half, moved)
    rest = fit("--ckpt_path", str(moved), "--trainer.max_epochs=8", "--model.rate=2.0", *names)

    def kept(folder: Path) -> list[tuple[str, float]]:
        states = load(folder / "checkpoints/last.ckpt")["callbacks"]
        state = next(value for name, value in states.items() if name.startswith("BestCheckpoint"))
        checkpoints = (folder / "checkpoints").resolve()
        scores = {
            Path(p).resolve().relative_to(checkpoints): s for p, s in state["best_k_models"].items()
        }
        files = {path.relative_to(folder / "checkpoints") for path in folder.rglob("*/*=*.ckpt")}
        assert files == scores.keys()
        return sorted((str(path), float(score)) for path, score in scores.items())

    assert len(kept(whole)) == 3
    assert kept(rest) == kept(whole)
    best = run("test", "--ckpt_path", str(next((whole / "checkpoints").rglob("*/*=*.ckpt"))))
    assert (best / "metrics.json").is_file()


def test_fewer_best_checkpoints_are_the_best_of_them() -> None:
    names = ["--checkpoint.filename={epoch}", "--model.rate=2.0"]
    half = fit("--trainer.max_epochs=6", "--checkpoint.save_top_k=3", *names)
    one = fit("--trainer.max_epochs=6", "--checkpoint.save_top_k=1", *names)
    words = ["--ckpt_path", str(half), "--checkpoint.save_top_k=1", "--trainer.max_epochs=6"]
    rest = fit(*words, *names)
    assert [path.name for path in rest.glob("checkpoints/epoch*")] == [
        path.name for path in one.glob("checkpoints/epoch*")
    ]
