"""A progress bar of the whole run."""

from __future__ import annotations

import math
import sys
from time import monotonic
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Timer, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from itmkit._internals import callbacks_of


class RunProgressBar(TQDMProgressBar):
    """Lightning's progress bar, with one training bar for the whole run instead of one an epoch.

    It counts the optimizer steps of ``max_steps``, or of all epochs, those before a run was resumed
    included. The remaining time is that of the steps and of the validations still to come, both
    from their mean time so far, and at most what ``max_time`` leaves. A validation counts as soon
    as one was timed, that of the untrained model included.

    Args:
        refresh_rate: batches from one update to the next; 0 for no bar.
        process_position: offset of the bars, in lines.

    Example:
        >>> trainer = Trainer(accelerator="cpu", callbacks=[RunProgressBar()], logger=False)
    """

    def __init__(self, refresh_rate: int = 1, process_position: int = 0) -> None:
        super().__init__(refresh_rate, process_position)
        self._validations: list[float] = []  # seconds of each
        self._start = self._validation_start = 0.0
        self._first_step = self._validations_before = 0

    def init_train_tqdm(self) -> Tqdm:
        return _RunTqdm(
            desc=self.train_description,
            position=2 * self.process_position,
            disable=self.is_disabled,
            leave=True,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,
            bar_format=self.BAR_FORMAT.replace("{remaining}", "{remaining_run}"),
        )

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        super().on_train_start(trainer, *_)
        self._start, self._first_step = monotonic(), trainer.global_step
        self._validations_before = len(self._validations)
        bar = self.train_progress_bar
        bar.total, bar.initial, bar.n = _total_steps(trainer), self._first_step, self._first_step

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch}")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        bar, step = self.train_progress_bar, trainer.global_step
        if self.is_enabled and ((batch_idx + 1) % self.refresh_rate == 0 or step == bar.total):
            bar.n = step
            bar.remaining_run = self.remaining(trainer)
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_start(trainer, pl_module)
        self._validation_start = monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self._validations.append(monotonic() - self._validation_start)

    def remaining(self, trainer: Trainer) -> float | None:
        """Seconds that the run still takes; None where that is not known."""
        left = [one.time_remaining() for one in callbacks_of(trainer, Timer)]
        step, total, first = trainer.global_step, _total_steps(trainer), self._first_step
        if total is not None and step > first:
            done = self._validations[self._validations_before :]
            training = (monotonic() - self._start - sum(done)) * (total - step) / (step - first)
            each = sum(self._validations) / max(len(self._validations), 1)
            between = _steps_between_validations(trainer)
            planned = total // between - first // between
            left.append(training + max(planned - len(done), 0) * each)
        known = [one for one in left if one is not None]
        return max(0.0, min(known)) if known else None


class _RunTqdm(Tqdm):
    """A bar whose remaining time, in seconds, is set from outside."""

    remaining_run: float | None = None

    @property
    def format_dict(self) -> dict[str, Any]:
        left = self.remaining_run
        text = "?" if left is None else self.format_interval(left)
        return {**super().format_dict, "remaining_run": text}


def _total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run, None where it has no end that is known."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 <= steps < math.inf else None


def _steps_between_validations(trainer: Trainer) -> float:
    """Optimizer steps from one validation to the next; inf where there is none."""
    batches, between = trainer.num_training_batches, trainer.val_check_batch
    every, accumulated = trainer.check_val_every_n_epoch or 1, trainer.accumulate_grad_batches
    if not trainer.enable_validation or between is None or between == math.inf:
        return math.inf
    if between == batches:  # at the end of epochs
        return every * math.ceil(batches / accumulated)
    return every * between / accumulated
