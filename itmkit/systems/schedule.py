"""Learning rates over a run: warm-up and cosine, the length of the run, and factors of groups."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
)
from torch.optim.swa_utils import SWALR

from itmkit._internals import callbacks_of, note_last_rates, schedules_inside
from itmkit.checks import InputError, TimeUnit, check_count, check_share


class WarmupCosine(LRScheduler):
    """Linear rise over ``warmup_steps``, then half a cosine to ``final`` at the end of the run.

    After that the rate stays at ``final``. With ``restarts`` rise and fall begin anew at these
    steps, and each fall ends where the next rise begins. Where the length of the run is not known,
    it stays at its peak after the rise, with a warning. A run that is resumed with other settings
    or another length continues with the rates of the new schedule from its current step on, with a
    warning.

    Args:
        optimizer: whose learning rates are the peaks.
        warmup_steps: steps of the rise, at least 0; as a float, a share of the run in [0, 1]. Where
            the run of a :class:`Matcher` is no longer than it, a tenth of that run.
        total_steps: steps until the end of the fall, more than ``warmup_steps``. Where None, a
            :class:`Matcher` gives the length of its run (:func:`run_length`); elsewhere call
            :meth:`set_length`.
        final: share of the peak that is left at the end, in [0, 1].
        restarts: steps at which a rise begins anew, in ascending order, such as where a system
            begins to train another part of itself.

    Raises:
        InputError: if a number is out of its range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule, rates = WarmupCosine(optimizer, 2, 6), []
        >>> for _ in range(8):
        ...     rates.append(round(schedule.get_last_lr()[0], 2))
        ...     optimizer.step(), schedule.step()
        (None, None)
        ...
        >>> rates
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int | float = 0.05,
        total_steps: int | None = None,
        *,
        final: float = 0.0,
        restarts: Sequence[int] = (),
    ) -> None:
        if isinstance(warmup_steps, float):
            check_share(warmup_steps=warmup_steps)
        else:
            check_count(0, warmup_steps=warmup_steps)
        if total_steps is not None:
            check_count(total_steps=total_steps)
            if not isinstance(warmup_steps, float) and total_steps <= warmup_steps:
                raise InputError(
                    f"total_steps is {total_steps}; expected more than warmup_steps={warmup_steps}"
                )
        check_share(final=final)
        if not isinstance(restarts, Sequence) or isinstance(restarts, str):
            raise InputError(f"restarts is {restarts!r}; expected a list of steps")
        for step in restarts:
            check_count(restarts=step)
        if list(restarts) != sorted(set(restarts)):
            raise InputError(f"restarts is {list(restarts)}; expected steps in ascending order")
        if total_steps is not None and restarts and restarts[-1] >= total_steps:
            raise InputError(
                f"restarts is {list(restarts)}; expected steps below total_steps={total_steps}"
            )
        self.warmup_steps = warmup_steps
        self.total_steps = total_steps
        self.final = final
        self.restarts = list(restarts)
        self.length = total_steps
        self._saved: dict[str, Any] | None = None  # the settings of a checkpoint
        super().__init__(optimizer)

    def set_length(self, steps: int | None) -> None:
        """Take the length of the run, where ``total_steps`` is None.

        Args:
            steps: how often the run steps this schedule in all, at least 1; None: not known.

        Raises:
            InputError: if the length is not known and ``warmup_steps`` is a share of it.
        """
        if self.total_steps is None:
            if steps is None and isinstance(self.warmup_steps, float):
                raise InputError(
                    f"warmup_steps is {self.warmup_steps}, a share of a run of unknown length; "
                    "expected a number of steps, or a run that max_steps or max_epochs ends"
                )
            self.length = steps
        elif self.final == 0 and steps is not None and steps > self.total_steps:
            rank_zero_warn(
                f"WarmupCosine: total_steps is {self.total_steps}, but the run has {steps}: the "
                "learning rate of the rest is 0. Leave total_steps out for the length of the run"
            )
        self._apply_settings()

    def get_lr(self) -> list[float | Tensor]:
        """The rates of the current step, a rate a group; torch calls this."""
        if self.last_epoch == 1 and self.length is None:
            rank_zero_warn(
                "WarmupCosine: the length of the run is not known; the learning rate stays at its "
                "peak after the warm-up. Give total_steps, or end the run by max_steps or "
                "max_epochs"
            )
        return self._rates()

    def state_dict(self) -> dict[str, Any]:
        """The position, and the settings it was reached with."""
        return {name: value for name, value in super().state_dict().items() if name != "_saved"}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the position; the settings stay this schedule's own."""
        own = {**self._settings(), "total_steps": self.total_steps}
        super().load_state_dict(state_dict | own)
        self._saved = {name: state_dict[name] for name in own if name in state_dict}
        if self.total_steps is not None:
            self._apply_settings()

    def _settings(self) -> dict[str, Any]:
        return {
            name: getattr(self, name) for name in ("warmup_steps", "final", "length", "restarts")
        }

    def _apply_settings(self) -> None:
        """Set the rates of the current step, unless they are restored and nothing has changed."""
        saved, self._saved = self._saved, None
        if saved is not None:
            settings = self._settings()
            changed = [name for name, value in settings.items() if saved.get(name, value) != value]
            if not changed:
                return
            changes = [
                f"{n} was {saved[n]} and is {settings[n]}" for n in changed if saved[n] is not None
            ]
            if changes:  # a length that was not known is none that was changed
                rank_zero_warn(
                    f"WarmupCosine: {', '.join(changes)}; from step {self.last_epoch} on the "
                    "learning rates are those of the new schedule"
                )
        for group, rate in zip(self.optimizer.param_groups, self._rates(), strict=True):
            _set_rate(group, rate)
        note_last_rates(self)

    def _rates(self) -> list[float | Tensor]:
        factor = self._factor(self.last_epoch)
        return [rate * factor for rate in self.base_lrs]

    def _factor(self, step: int) -> float:
        start = max([0, *(restart for restart in self.restarts if restart <= step)])
        ends = [*(restart for restart in self.restarts if restart > step), self.length]
        known = [end for end in ends if end is not None]
        length = max(min(known) - start, 1) if known else None
        step -= start
        warmup = self._warmup(length)
        if step < warmup:
            return (step + 1) / warmup
        if length is None:
            return 1.0
        done = min((step - warmup) / max(length - warmup, 1), 1.0)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2

    def _warmup(self, length: int | None) -> int:
        """Steps of a rise, where it and its fall take so many."""
        if isinstance(self.warmup_steps, float):
            return int(self.warmup_steps * (length or 0))
        if length is None or self.warmup_steps < length:
            return self.warmup_steps
        return length // 10


def run_length(trainer: Trainer, unit: TimeUnit) -> int | None:
    """How many epochs, or optimizer steps, a run has until ``max_steps`` or ``max_epochs`` ends it.

    Counted from its very start, also where it is resumed. To be asked for when training starts.

    Args:
        trainer: of the run; its number of training batches is known.
        unit: what to count.

    Returns:
        The number; None where nothing ends the run, or the length of an epoch is not known.
    """
    most = math.inf if trainer.max_steps < 0 else trainer.max_steps
    epochs = math.inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    batches = trainer.num_training_batches
    if batches == math.inf:
        length = most if unit == "step" else epochs
        return None if length == math.inf else int(length)
    if not batches or most == epochs == math.inf:
        return None
    accumulated = callbacks_of(trainer, GradientAccumulationScheduler)
    steps = epoch = 0
    while epoch < epochs and steps < most:
        at_once = trainer.accumulate_grad_batches
        if accumulated:
            at_once = accumulated[0].get_accumulate_grad_batches(epoch)
        steps += math.ceil(batches / at_once)
        epoch += 1
    return epoch if unit == "epoch" else int(min(steps, most))


def fit_to_run(trainer: Trainer) -> None:
    """Tell the schedules of a run what only the trainer knows, when training starts.

    :class:`WarmupCosine` gets the length of the run. A ``ReduceLROnPlateau`` that watches a metric
    of the validation steps as often as there is one.

    Raises:
        InputError: if such a metric is watched, but there is no validation.
    """
    for config in trainer.lr_scheduler_configs:
        if isinstance(config.scheduler, WarmupCosine):
            unit: TimeUnit = "step" if config.interval == "step" else "epoch"
            config.scheduler.set_length(run_length(trainer, unit))
        elif config.reduce_on_plateau and str(config.monitor).startswith("val/"):
            loaded = trainer.val_dataloaders is not None
            if not trainer.enable_validation or (loaded and not sum(trainer.num_val_batches)):
                raise InputError(
                    f"lr_scheduler ReduceLROnPlateau watches {config.monitor!r}, but the run has "
                    "no validation; expected a metric of training, such as 'train/loss'"
                )
            config.frequency = trainer.check_val_every_n_epoch or 1
            config.strict = trainer.check_val_every_n_epoch is not None


def scheduler_config(schedule: LRScheduler, interval: TimeUnit) -> dict[str, Any]:
    """What Lightning wants to know of a schedule.

    A ``ReduceLROnPlateau`` watches its ``monitor``, which Lightning's has, or else ``val/rsum``.

    Raises:
        InputError: if it watches a metric of :class:`Matcher` in the wrong direction, or one of the
            validation by step.
    """
    config: dict[str, Any] = {"scheduler": schedule, "interval": interval}
    if isinstance(schedule, ReduceLROnPlateau):
        monitor = config["monitor"] = getattr(schedule, "monitor", "val/rsum")
        mode = _better(monitor)
        if mode and schedule.mode != mode:
            raise InputError(
                f"mode of lr_scheduler ReduceLROnPlateau is {schedule.mode!r}; expected {mode!r} "
                f"for {monitor!r}"
            )
        if interval == "step" and monitor.startswith("val/"):
            raise InputError(
                f"lr_scheduler_interval is 'step'; expected 'epoch' for {monitor!r}, which "
                "lr_scheduler ReduceLROnPlateau watches"
            )
    return config


def _better(monitor: str) -> str | None:
    """The direction in which a metric of a Matcher gets better: ``min`` or ``max``."""
    stage, _, name = monitor.partition("/")
    if stage == "train":
        return "min" if name == "loss" else None
    if stage != "val":
        return None
    name = name.partition("/")[0].rpartition("_")[2]
    if name in ("medr", "meanr"):
        return "min"
    return "max" if re.fullmatch(r"r\d+|rsum", name) else None


def scale_by_lr_factor(schedule: LRScheduler) -> None:
    """Let a new schedule keep the ratio of the rates of an optimizer's groups.

    Every group has its ``lr_factor``, by which its rate was multiplied before the schedule was
    made. Most schedules multiply that rate further. Those that set rates of their own, the same
    for all groups, get theirs multiplied here, once.

    Raises:
        InputError: for a schedule whose rates cannot be multiplied.
    """
    groups = schedule.optimizer.param_groups
    factors = [group["lr_factor"] for group in groups]
    if all(factor == 1 for factor in factors):
        return
    if isinstance(schedule, (OneCycleLR, CyclicLR)):
        for group, factor in zip(groups, factors, strict=True):
            for name in ("initial_lr", "max_lr", "min_lr"):  # the last two are of OneCycleLR
                if name in group:
                    group[name] = group[name] * factor
            _set_rate(group, group["lr"] * factor)
        schedule.base_lrs = _products(schedule.base_lrs, factors)
        if isinstance(schedule, CyclicLR):
            schedule.max_lrs = _products(schedule.max_lrs, factors)
        note_last_rates(schedule)
        return
    if isinstance(schedule, ReduceLROnPlateau):
        schedule.min_lrs = _products(schedule.min_lrs, factors)
        return
    for part in _parts(schedule):
        reason = _sets_rates(part)
        if reason:
            raise InputError(
                f"lr_scheduler is {type(part).__name__}, {reason}, so lr_factors would be lost; "
                "expected a schedule that multiplies the optimizer's rates, such as WarmupCosine"
            )


def _sets_rates(schedule: LRScheduler) -> str:
    """Why a schedule does not keep the ratio of the groups' rates; empty where it does."""
    if isinstance(schedule, (OneCycleLR, CyclicLR)):
        return "which sets rates of its own, inside another schedule"
    if isinstance(schedule, SWALR):
        return "which ends at swa_lr for all groups"
    if isinstance(schedule, (CosineAnnealingLR, CosineAnnealingWarmRestarts)) and schedule.eta_min:
        return f"which ends at eta_min={schedule.eta_min} for all groups"
    if type(schedule).__module__.startswith("torch."):
        return ""
    groups = schedule.optimizer.param_groups
    rates, factors = ({float(group[name]) for group in groups} for name in ("lr", "lr_factor"))
    lost = len(rates) == 1 < len(factors) and any(rates)
    return "which sets one rate for all groups" if lost else ""


def _parts(schedule: LRScheduler) -> Iterable[LRScheduler]:
    """A schedule, or those that a SequentialLR or ChainedScheduler is made of."""
    return [part for one in schedules_inside(schedule) for part in _parts(one)] or [schedule]


def _products(rates: Sequence[Any], factors: Sequence[float]) -> list[Any]:
    return [rate * factor for rate, factor in zip(rates, factors, strict=True)]


def _set_rate(group: dict[str, Any], rate: float | Tensor) -> None:
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate
