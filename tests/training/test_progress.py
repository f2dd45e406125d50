"""The progress bar of a run, with a clock that the model moves on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from tiny_cli import run
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from itmkit.training import progress
from itmkit.training.progress import RunProgressBar

BATCHES, STEP, VALIDATION = 4, 1.0, 10.0


class Clock:
    now = 100.0


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "monotonic", lambda: found.now)
    return found


class Timed(LightningModule):
    """A batch takes a second, a validation ten."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.clock.now += STEP
        return self.layer(batch).sum()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.clock.now += VALIDATION

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(BATCHES, 1))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(torch.ones(1, 1))


class Seen(Callback):
    """What the bar shows after every batch: steps, all steps, seconds left."""

    def __init__(self, bar: RunProgressBar) -> None:
        self.bar = bar
        self.rows: list[tuple[int, int | None, float | None]] = []

    def on_train_batch_end(self, *args: Any) -> None:
        bar = self.bar.train_progress_bar
        self.rows.append((bar.n, bar.total, bar.remaining_run))


def fit(
    folder: Path, clock: Clock, model: Timed | None = None, *, ckpt_path: str | None = None,
    validated: bool = True, callbacks: tuple[Callback, ...] = (), **options: Any,
) -> list[tuple[int, int | None, float | None]]:  # fmt: skip
    bar = RunProgressBar()
    seen, model = Seen(bar), model or Timed(clock)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[bar, seen, *callbacks],
        **options,
    )
    if validated:
        trainer.validate(model, verbose=False)
    trainer.fit(model, ckpt_path=ckpt_path, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return seen.rows


def expected(first: int, total: int, *, every: int) -> list[Any]:
    """Steps alone, and the validations that follow on every so many of them."""
    return [
        (n, total, (total - n) * STEP + (total // every - (n - 1) // every) * VALIDATION)
        for n in range(first, total + 1)
    ]


def test_epochs_are_one_bar_and_validations_are_in_the_time(tmp_path: Path, clock: Clock) -> None:
    assert fit(tmp_path, clock, max_epochs=3) == expected(1, 12, every=4)


def test_max_steps_in_the_middle_of_an_epoch(tmp_path: Path, clock: Clock) -> None:
    assert fit(tmp_path, clock, max_steps=10) == expected(1, 10, every=4)
    assert fit(tmp_path, clock, max_steps=10, max_epochs=2) == expected(1, 8, every=4)


def test_validations_count_from_the_first_that_was_timed(tmp_path: Path, clock: Clock) -> None:
    found = fit(tmp_path, clock, max_epochs=3, validated=False)
    assert found[:4] == [(n, 12, (12 - n) * STEP) for n in range(1, 5)]
    assert found[4:] == expected(5, 12, every=4)


@pytest.mark.parametrize(
    ("options", "every"),
    [
        ({"val_check_interval": 2}, 2),
        ({"val_check_interval": 0.5}, 2),
        ({"val_check_interval": 3, "check_val_every_n_epoch": None}, 3),
        ({"check_val_every_n_epoch": 2}, 8),
    ],
)
def test_when_validations_come(
    tmp_path: Path, clock: Clock, options: dict[str, Any], every: int
) -> None:
    assert fit(tmp_path, clock, max_epochs=4, **options) == expected(1, 16, every=every)


def test_no_validation(tmp_path: Path, clock: Clock) -> None:
    found = fit(tmp_path, clock, max_epochs=2, limit_val_batches=0, validated=False)
    assert found == [(n, 8, (8 - n) * STEP) for n in range(1, 9)]


def test_accumulated_batches_are_one_step(tmp_path: Path, clock: Clock) -> None:
    found = fit(tmp_path, clock, max_epochs=2, accumulate_grad_batches=3)
    assert [(n, total) for n, total, _ in found] == [(n, 4) for n in (0, 0, 1, 2, 2, 2, 3, 4)]
    assert found[0][2] is None
    assert found[2][2] == 3 * 3 * STEP + 2 * VALIDATION
    assert found[7][2] == VALIDATION


def test_a_resumed_run_goes_on(tmp_path: Path, clock: Clock) -> None:
    fit(tmp_path, clock, max_epochs=1)
    clock.now += 1000
    found = fit(tmp_path, clock, max_epochs=3, ckpt_path=str(tmp_path / "last.ckpt"))
    assert found == expected(5, 12, every=4)


def test_time_limit_is_the_end_where_it_comes_first(tmp_path: Path, clock: Clock) -> None:
    timer = Timer({"hours": 1})
    timer.time_remaining = lambda *_: 7.0
    found = fit(tmp_path, clock, max_epochs=3, callbacks=(timer,))
    assert [left for *_, left in found[:2]] == [7.0, 7.0]
    assert found[-1][2] == 7.0


def test_a_run_without_an_end(tmp_path: Path, clock: Clock) -> None:
    class Endless(IterableDataset):
        def __iter__(self) -> Iterator[Tensor]:
            while True:
                yield torch.ones(1)

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step == 3

    model = Timed(clock)
    model.train_dataloader = lambda: DataLoader(Endless())
    found = fit(tmp_path, clock, model, max_epochs=1, callbacks=(Stop(),))
    assert found == [(n, None, None) for n in (1, 2, 3)]


def test_the_command_line_shows_it(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--trainer.enable_progress_bar", "true", "--trainer.max_epochs", "3")
    shown = capsys.readouterr().out
    assert "| 6/6 [" in shown
    assert re.search(r"Epoch 1: .* 3/6 \[\d+:\d+<\d+:\d+, ", shown)
