"""Options of a resumed run that differ from those of its checkpoint: applied, or refused."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.optim.lr_scheduler import OneCycleLR

from itmkit.cli import main
from itmkit.configs.flat import flat_options
from itmkit.runs.resumed_options import changed_options

# Two batches an epoch.
CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "tiny_matcher.OptimizedMatcher",
        "init_args": {
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}},
            "lr_scheduler": None,
        },
    },
    "data": {
        "class_path": "itmkit.data.ImageTextData",
        "init_args": {
            "dataset": "tiny_matcher.TinyDataset",
            "batch_size": 2,
            "vocabulary_min_count": 1,
        },
    },
    "trainer": {
        "max_epochs": 4,
        "accelerator": "cpu",
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {"class_path": "LearningRateMonitor", "init_args": {"logging_interval": "step"}}
        ],
    },
    "untrained": False,
    "name": "tiny",
}
STEP = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}}
HALVES = STEP | {"init_args": {"step_size": 1, "gamma": 0.5}}
COSINE = {
    "class_path": "itmkit.systems.WarmupCosine",
    "init_args": {"warmup_steps": 0, "total_steps": 8, "final": 0.5},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["itmkit"])


def run(*words: str, trainer: dict[str, Any] | None = None, **model: Any) -> Path:
    """Train with some arguments of the model and the trainer; the folder of the run."""
    config = CONFIG | {"trainer": CONFIG["trainer"] | (trainer or {})}
    arguments = CONFIG["model"]["init_args"] | model
    config["model"] = CONFIG["model"] | {"init_args": arguments}
    Path("tiny.yaml").write_text(yaml.safe_dump(config))
    before = set(Path("runs").glob("*/2*"))
    main(["fit", "--config", "tiny.yaml", *words])
    (folder,) = set(Path("runs").glob("*/2*")) - before
    return folder


def last_of(folder: Path) -> str:
    return str(folder / "checkpoints/last.ckpt")


def load(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(last_of(folder), weights_only=True)
    return content


def rates(folder: Path) -> list[float]:
    """The learning rates that were logged, of every step."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    (name,) = (name for name in rows[0] if name.startswith("lr-"))
    return [float(row[name]) for row in rows if row[name]]


def told(text: str) -> list[str]:
    mark = "changed since the checkpoint: "
    return [line.removeprefix(mark) for line in text.splitlines() if line.startswith(mark)]


def refusal(capsys: pytest.CaptureFixture[str], *words: str, **options: Any) -> str:
    """The one line of a run that is refused, of which nothing is left."""
    before = set(Path("runs").glob("*/2*"))
    with pytest.raises(SystemExit) as stop:
        run(*words, **options)
    assert stop.value.code == 2
    assert set(Path("runs").glob("*/2*")) == before
    (line,) = (li for li in capsys.readouterr().err.splitlines() if "itmkit: error:" in li)
    assert line.endswith("start from its weights alone with --init_from")
    return line


def test_rate_decay_and_betas_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    half = run(trainer={"max_epochs": 2})
    rest = run(
        *("--ckpt_path", last_of(half), "--model.optimizer.lr", "0.5"),
        *("--model.optimizer.weight_decay=0.3", "--model.optimizer.betas=[0.5, 0.6]"),
    )
    assert rates(half) == [0.1] * 4
    assert rates(rest) == [0.5] * 4
    (group,) = load(rest)["optimizer_states"][0]["param_groups"]
    assert (group["lr"], group["weight_decay"], list(group["betas"])) == (0.5, 0.3, [0.5, 0.6])
    assert load(rest)["optimizer_states"][0]["state"][0]["step"] == 8  # its moments went along
    assert told(capsys.readouterr().out) == [
        "model.optimizer.betas: [0.9, 0.999] → [0.5, 0.6]",
        "model.optimizer.lr: 0.1 → 0.5",
        "model.optimizer.weight_decay: 0.01 → 0.3",
        "trainer.max_epochs: 2 → 4",
    ]


def test_weight_decay_leaves_the_rate_of_the_schedule() -> None:
    half = run(trainer={"max_epochs": 2}, lr_scheduler=HALVES)
    rest = run(
        "--ckpt_path", last_of(half), "--model.optimizer.weight_decay=0.3", lr_scheduler=HALVES
    )
    assert rates(rest) == [0.025] * 2 + [0.0125] * 2
    assert load(rest)["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.3


def test_equal_options_change_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(lr_scheduler=HALVES)
    half = run(trainer={"max_epochs": 2}, lr_scheduler=HALVES)
    rest = run("--ckpt_path", last_of(half), lr_scheduler=HALVES)
    assert rates(half) + rates(rest) == rates(whole)
    for name in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(load(rest)[name], load(whole)[name], rtol=0, atol=0)
    assert told(capsys.readouterr().out) == ["trainer.max_epochs: 2 → 4"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"lr_scheduler": STEP}, {"lr_scheduler": HALVES}),
        ({}, {"lr_scheduler": HALVES}),
        ({"lr_scheduler": HALVES}, {}),
        ({"lr_scheduler": HALVES}, {"lr_scheduler": COSINE, "lr_scheduler_interval": "step"}),
        (
            {"lr_scheduler": COSINE, "lr_scheduler_interval": "step"},
            {
                "lr_scheduler": COSINE | {"init_args": COSINE["init_args"] | {"total_steps": 16}},
                "lr_scheduler_interval": "step",
            },
        ),
        (
            {"lr_scheduler": HALVES},
            {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.8}}}
            | {"lr_scheduler": HALVES},
        ),
        ({}, {"lr_factors": {"": 0.5}}),
    ],
    ids=["gamma", "added", "removed", "replaced", "length", "rate", "factor"],
)
def test_schedule_goes_on_as_if_it_had_been_so_from_the_start(
    before: dict[str, Any], after: dict[str, Any]
) -> None:
    half = run(trainer={"max_epochs": 2}, **before)
    rest = run("--ckpt_path", last_of(half), **after)
    whole = run(**after)
    assert rates(rest) == pytest.approx(rates(whole)[4:], rel=1e-12)
    assert rates(half) != pytest.approx(rates(whole)[:4])


def test_one_cycle_sets_its_momentum_too() -> None:
    cycle = {
        "class_path": "torch.optim.lr_scheduler.OneCycleLR",
        "init_args": {"max_lr": 0.2, "total_steps": 9},
    }
    half = run(trainer={"max_epochs": 2})
    rest = run("--ckpt_path", last_of(half), lr_scheduler=cycle, lr_scheduler_interval="step")
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    expected = OneCycleLR(optimizer, 0.2, total_steps=9)
    steps, betas = [], []
    for _ in range(8):
        steps.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        expected.step()
        betas.append(optimizer.param_groups[0]["betas"])
    assert rates(rest) == pytest.approx(steps[4:], rel=1e-12)
    group = load(rest)["optimizer_states"][0]["param_groups"][0]
    assert tuple(group["betas"]) == pytest.approx(betas[-1])


def test_error_schedule_shorter_than_what_was_trained(capsys: pytest.CaptureFixture[str]) -> None:
    cycle = {
        "class_path": "torch.optim.lr_scheduler.OneCycleLR",
        "init_args": {"max_lr": 0.2, "total_steps": 3},
    }
    half = run(trainer={"max_epochs": 2})
    with pytest.raises(SystemExit):
        run("--ckpt_path", last_of(half), lr_scheduler=cycle, lr_scheduler_interval="step")
    assert "model.lr_scheduler is at its end before step 4" in capsys.readouterr().err


def test_patience_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    def stopping(patience: int) -> dict[str, Any]:
        arguments = {"monitor": "val/rsum", "mode": "max", "patience": patience, "min_delta": 1e9}
        return {
            "max_epochs": 9,
            "callbacks": [
                *CONFIG["trainer"]["callbacks"],
                {"class_path": "EarlyStopping", "init_args": arguments},
            ],
        }

    first = run(trainer=stopping(2))
    assert load(first)["epoch"] == 2  # the first epoch is better than none
    rest = run("--ckpt_path", last_of(first), trainer=stopping(5))
    assert load(rest)["epoch"] == 5
    assert told(capsys.readouterr().out) == ["trainer.callbacks.1.patience: 2 → 5"]


def test_another_seed_draws_other_random_numbers() -> None:
    half = run(trainer={"max_epochs": 2})
    states = [
        load(run("--ckpt_path", last_of(half), *words))["resume"]["processes"][0]["random"]
        for words in ([], ["--seed_everything=7"])
    ]
    assert not states[0]["torch"].equal(states[1]["torch"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}},
            "model.optimizer is torch.optim.sgd.SGD; the checkpoint was trained with "
            "torch.optim.adamw.AdamW",
        ),
        (
            {"lr_factors": {"text": 0.1}},
            "text.weight is in another parameter group of the optimizer than in the checkpoint "
            "(model.lr_factors, and which weights are trained)",
        ),
        (
            {
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"lr": 0.1, "amsgrad": True},
                }
            },
            "model.optimizer.amsgrad is True; the checkpoint was trained with False",
        ),
    ],
    ids=["class", "groups", "state"],
)
def test_error_what_cannot_be_applied(
    options: dict[str, Any], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    half = run(trainer={"max_epochs": 1})
    line = refusal(capsys, "--ckpt_path", last_of(half), **options)
    assert line.startswith(f"itmkit: error: {expected}: resume with the same")


def test_error_groups_of_the_same_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    half = run(trainer={"max_epochs": 1}, lr_factors={"image": 0.1})
    line = refusal(capsys, "--ckpt_path", last_of(half), lr_factors={"image.bias": 0.1})
    assert "image.bias is in another parameter group" in line


def test_options_are_named_as_they_are_typed() -> None:
    old = {
        "trainer": {"callbacks": [{"class_path": "A", "init_args": {"a": 1}}, {"class_path": "B"}]}
    }
    new = {"trainer": {"callbacks": [{"class_path": "A", "init_args": {"a": 2}}], "devices": [0]}}
    assert [str(one) for one in changed_options(flat_options(old), flat_options(new))] == [
        "trainer.callbacks.0.a: 1 → 2",
        "trainer.callbacks.1: B → none",
        "trainer.devices: none → [0]",
    ]
