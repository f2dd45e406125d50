"""A momentum teacher: a frozen copy of the model that follows it slowly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from itmkit.callbacks.submodules import check_names, find_submodule
from itmkit.checks import InputError, check_share
from itmkit.nn import Teacher


class MomentumTeacher(Callback):
    r"""Keep a teacher, an exponential moving average of the module that is being trained.

    .. math::

        \theta' \leftarrow \mu\, \theta' + (1 - \mu)\, \theta

    once for every batch in which an optimizer stepped: with gradient accumulation not for every
    batch, and with several optimizers not for each of them. Buffers are copied.

    While fitting, and after it, the module reaches the teacher as ``self.teacher``, with the copied
    submodules under their own names, so ``self.teacher.image_encoder(x)`` in ``training_step``. It
    starts as a copy of the module's weights at the start of the fit and is a
    :class:`itmkit.nn.Teacher`: no gradient, eval mode, float32. It is no submodule: not in the
    parameters, the optimizer, the state dict or DDP. It is saved as the state of this callback and
    comes back with ``ckpt_path``; all ranks hold the same one.

    Meant for strategies that keep whole parameters on each rank (one device, DDP).

    He et al., Momentum Contrast (MoCo), CVPR 2020; Li et al., ALBEF, NeurIPS 2021. Differs from the
    released code of MATE: that updates three times an iteration.

    Args:
        momentum: μ, how much of the teacher an update keeps, in [0, 1].
        submodules: names of the attributes to copy; None for the whole module.

    Raises:
        InputError: for a momentum outside [0, 1]; at the start of the fit, for a name that is no
            submodule, for a module that already has a submodule or parameter called ``teacher``, or
            for the teacher of a checkpoint that does not fit.

    Example:
        >>> teacher = MomentumTeacher(momentum=0.995, submodules=["image_encoder", "text_encoder"])
        >>> teacher.momentum
        0.995
    """

    def __init__(self, momentum: float = 0.995, submodules: Sequence[str] | None = None) -> None:
        check_share(momentum=momentum)
        self.momentum = momentum
        self.submodules = None if submodules is None else check_names(submodules)
        for name in self.submodules or ():
            if "." in name:
                raise InputError(f"submodules has {name!r}; expected names without a dot")
        self._teacher: Teacher | None = None
        self._global_step = 0  # at the last update
        self._restored: dict[str, Any] | None = None
        self._saved_in = "the restored teacher"  # what an error calls it

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher; None before the first fit."""
        return None if self._teacher is None else self._teacher.model

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restored = None  # of an earlier run; this run's checkpoint is read after setup

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._saved_in = f"the teacher in checkpoint '{trainer.ckpt_path}'"

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:
            return self._restored
        if self._teacher is None:
            return {}
        return {"teacher": self._teacher.state_dict(), "global_step": self._global_step}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.attach(pl_module)

    def attach(self, pl_module: LightningModule) -> None:
        """Give the module its ``teacher``, as the start of training does it.

        Raises:
            InputError: if the module has another submodule or parameter of that name.
        """
        own = [*pl_module.named_children(), *pl_module.named_parameters(recurse=False)]
        if "teacher" in dict(own):
            raise InputError(
                f"pl_module: {type(pl_module).__name__} already has a submodule called 'teacher'"
            )
        pl_module.__dict__.pop("teacher", None)
        self._teacher = Teacher(self._source(pl_module), self.momentum)
        if self._restored is not None:
            self._teacher.load_state_dict(self._restored["teacher"], source=self._saved_in)
        # past nn.Module, which would register it
        pl_module.__dict__["teacher"] = self._teacher.model

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only now has the trainer its own step back, and do all strategies have their checkpoint.
        self._global_step = trainer.global_step
        if self._restored is not None and self._teacher is not None:
            self._teacher.load_state_dict(self._restored["teacher"], source=self._saved_in)
            self._global_step = self._restored["global_step"]
        self._restored = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # Resumed from a checkpoint that was written between a step and its update.
        self._update_after_step(trainer, pl_module)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._update_after_step(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.teacher is not None:
            self.teacher.to(pl_module.device)  # which the trainer has moved off the accelerator

    def _source(self, pl_module: LightningModule) -> nn.Module:
        """The module itself, or a module that holds its named submodules."""
        if self.submodules is None:
            return pl_module
        source = nn.Module()
        for name in self.submodules:
            source.add_module(name, find_submodule(pl_module, name))
        return source

    def _update_after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self._global_step or self._teacher is None:
            return
        self._global_step = trainer.global_step
        self._teacher.student = self._source(pl_module)
        self._teacher.momentum = self.momentum
        self._teacher.update()


def teacher_of(pl_module: LightningModule) -> Any:
    """The teacher that a :class:`MomentumTeacher` has given a module.

    Raises:
        InputError: there is none.
    """
    teacher = getattr(pl_module, "teacher", None)
    if teacher is None:
        raise InputError(
            "distillation_weight is not 0, but there is no teacher: train with a Trainer, or use "
            "MomentumTeacher"
        )
    return teacher
