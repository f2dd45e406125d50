"""Parts of a model that are trained only before or after some epoch or step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, Strategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from itmkit._internals import callbacks_of, wrap_anew
from itmkit.callbacks.submodules import check_names, find_submodule
from itmkit.checks import InputError, TimeUnit, check_choice, check_count, check_optional_count


class FreezeUntil(Callback):
    """Keep submodules frozen for the first epochs (or steps), then train them; or from a later one.

    While frozen, all of their parameters have no gradient and all of their modules are in eval
    mode. After that, and when the fit ends, each is what it was before: what its owner had frozen
    stays frozen. The parameters are in the optimizer from the start and have no state there until
    they are trained, so the parameter groups never change. Whether they are frozen follows from
    the epoch or the step of the trainer alone, so nothing is saved and a resumed run is the same.

    Several of them may hold the same submodule: it is frozen as long as one of them holds it.

    Under DDP the model is wrapped anew whenever this changes, because DDP settles which gradients
    it synchronises when it wraps. Other strategies of several devices are refused.

    DAIM freezes its two backbones for the first 10 epochs.

    Args:
        submodules: dotted names, such as ``"image_encoder.backbone"``.
        until: the first epoch, or optimizer step, in which they are trained again, at least 0; None
            where they never are.
        unit: what ``until`` and ``since`` count, ``"epoch"`` or ``"step"``.
        since: the first epoch, or optimizer step, in which they are frozen, at least 0.

    Raises:
        InputError: for an argument out of its range; at the start of the fit, for a name that is
            no submodule, for a strategy that is not supported, or if nothing is left to train.

    Example:
        >>> freeze = FreezeUntil(["image_encoder.backbone", "text_encoder.backbone"], until=10)
        >>> freeze.until, freeze.unit
        (10, 'epoch')
    """

    def __init__(
        self,
        submodules: Sequence[str],
        until: int | None = 10,
        unit: TimeUnit = "epoch",
        *,
        since: int = 0,
    ) -> None:
        check_count(0, since=since)
        check_optional_count(0, until=until)
        if since and until is not None and until <= since:
            raise InputError(f"until is {until}; expected more than since={since}, or None")
        check_choice("unit", unit, TimeUnit)
        self.submodules = check_names(submodules)
        self.until = until
        self.unit = unit
        self.since = since
        self._frozen = False
        self._gradients: dict[nn.Parameter, bool] = {}  # while frozen: as before
        self._modes: dict[nn.Module, bool] = {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._parts(pl_module)
        strategy = trainer.strategy
        if not isinstance(strategy, SingleDeviceStrategy) and _wrapper(strategy) is None:
            raise InputError(
                f"strategy is a {type(strategy).__name__}; expected one device or DDP, for "
                "FreezeUntil"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Not by epoch: a run that resumes within one does not start it, and steps are within.
        now = trainer.current_epoch if self.unit == "epoch" else trainer.global_step
        frozen = self.since <= now and (self.until is None or now < self.until)
        if frozen != self._frozen:
            if frozen:
                self._freeze(trainer, pl_module)
            else:
                self._release(trainer)
            _wrap_anew(trainer.strategy)
        for module in self._modes:  # every time: somebody may have called train()
            module.training = False

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._release(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release(trainer)

    def _parts(self, pl_module: LightningModule) -> list[nn.Module]:
        return [find_submodule(pl_module, name) for name in self.submodules]

    def _freeze(self, trainer: Trainer, pl_module: LightningModule) -> None:
        parts = self._parts(pl_module)
        modes, gradients = self._held_by_others(trainer)
        self._frozen = True
        self._modes = {m: modes.get(m, m.training) for part in parts for m in part.modules()}
        self._gradients = {
            p: gradients.get(p, p.requires_grad) for part in parts for p in part.parameters()
        }
        for parameter in self._gradients:
            parameter.requires_grad = False
        if not any(parameter.requires_grad for parameter in pl_module.parameters()):
            raise InputError(
                f"submodules: {self.submodules} leave {type(pl_module).__name__} nothing to train"
            )

    def _release(self, trainer: Trainer) -> None:
        modes, gradients = self._held_by_others(trainer)
        self._frozen = False
        for parameter, gradient in self._gradients.items():
            if parameter not in gradients:
                parameter.requires_grad = gradient
        for module, mode in self._modes.items():
            if module not in modes:
                module.training = mode
        self._gradients, self._modes = {}, {}

    def _held_by_others(
        self, trainer: Trainer
    ) -> tuple[dict[nn.Module, bool], dict[nn.Parameter, bool]]:
        """What other callbacks of this class keep frozen, as it was before."""
        modes: dict[nn.Module, bool] = {}
        gradients: dict[nn.Parameter, bool] = {}
        for other in callbacks_of(trainer, FreezeUntil):
            if other is not self:
                modes |= other._modes
                gradients |= other._gradients
        return modes, gradients


def _wrapper(strategy: Strategy) -> DistributedDataParallel | None:
    # What DDPStrategy wraps: its subclass for DeepSpeed wraps otherwise.
    model = strategy.model if isinstance(strategy, DDPStrategy) else None
    return model if isinstance(model, DistributedDataParallel) else None


def _wrap_anew(strategy: Strategy) -> None:
    """Let DDP look again at which parameters have a gradient."""
    wrapper = _wrapper(strategy)
    if wrapper is None or not isinstance(strategy, DDPStrategy):
        return
    # DDP wraps, and copies the weights of rank 0, on a CUDA stream of its own.
    _wait_for_device(strategy)
    wrap_anew(strategy, wrapper)
    _wait_for_device(strategy)


def _wait_for_device(strategy: DDPStrategy) -> None:
    if strategy.root_device.type == "cuda":
        torch.cuda.synchronize(strategy.root_device)
