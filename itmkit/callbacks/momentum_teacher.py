"""A momentum teacher: a frozen copy of the model that follows it slowly."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from itmkit.callbacks.submodules import check_names, find_submodule
from itmkit.checks import InputError, check_share


class MomentumTeacher(Callback):
    r"""Keep a teacher, an exponential moving average of the module that is being trained.

    .. math::

        \theta' \leftarrow \mu\, \theta' + (1 - \mu)\, \theta

    once for every batch in which an optimizer stepped: with gradient accumulation not for every
    batch, and with several optimizers not for each of them. Buffers are copied.

    While fitting, and after it, the module reaches the teacher as ``self.teacher``, with the copied
    submodules under their own names, so ``self.teacher.image_encoder(x)`` in ``training_step``. It
    starts as a copy of the module's weights at the start of the fit, has no gradient, stays in eval
    mode, and holds float32 (float64 for a float64 module) whatever the precision of training. Hooks
    that others put on the module, such as a profiler's, are not copied. It is no submodule: not in
    the parameters, the optimizer, the state dict or DDP. It is saved as the state of this callback
    and comes back with ``ckpt_path``; all ranks hold the same one.

    Meant for strategies that keep whole parameters on each rank (one device, DDP).

    He et al., Momentum Contrast (MoCo), CVPR 2020; Li et al., ALBEF, NeurIPS 2021. Differs from the
    released code of MATE: that updates three times an iteration.

    Args:
        momentum: μ, how much of the teacher an update keeps, in [0, 1].
        submodules: names of the attributes to copy; None for the whole module.

    Raises:
        InputError: for a momentum outside [0, 1]; at the start of the fit, for a name that is no
            submodule, or a module that already has a submodule or parameter called ``teacher``.

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
        self.teacher: nn.Module | None = None
        self._global_step = 0  # at the last update
        self._restored: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restored = None  # of an earlier run; this run's checkpoint is read after setup

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:
            return self._restored
        if self.teacher is None:
            return {}
        return {"teacher": self.teacher.state_dict(), "global_step": self._global_step}

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
        self.teacher = _frozen_copy(self._source(pl_module))
        if self._restored is not None:
            self.teacher.load_state_dict(self._restored["teacher"])
        pl_module.__dict__["teacher"] = self.teacher  # past nn.Module, which would register it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Only now has the trainer its own step back, and do all strategies have their checkpoint.
        self._global_step = trainer.global_step
        if self._restored is not None and self.teacher is not None:
            self.teacher.load_state_dict(self._restored["teacher"])
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
        if trainer.global_step == self._global_step or self.teacher is None:
            return
        self._global_step = trainer.global_step
        _follow(self.teacher, self._source(pl_module), self.momentum)


def _frozen_copy(source: nn.Module) -> nn.Module:
    """A copy without gradients, in eval mode, in at least float32."""
    kept = [value for module in source.modules() for value in vars(module).values()]
    memo = {  # tensors of a graph, which deepcopy refuses
        id(value): value.detach().clone()
        for value in kept
        if isinstance(value, Tensor) and not value.is_leaf
    }
    with _without_foreign_hooks(source):
        teacher = copy.deepcopy(source, memo).requires_grad_(False).eval()
    dtypes = {t.dtype for t in (*source.parameters(), *source.buffers()) if t.is_floating_point()}
    teacher.to(dtype=torch.float64 if torch.float64 in dtypes else torch.float32)
    if dtypes & {torch.float16, torch.bfloat16}:
        for module in teacher.modules():
            if any(p.is_floating_point() for p in module.parameters(recurse=False)):
                module.register_forward_pre_hook(_to_own_precision, with_kwargs=True)
    return teacher


@contextmanager
def _without_foreign_hooks(source: nn.Module) -> Iterator[None]:
    """Take away the hooks that others put on a model, such as a profiler, and put them back.

    A hook is the model's own where its code comes from a package that a module of the model comes
    from, too, or from torch or itmkit, which change models by hooks.
    """
    packages = {_package(module) for module in source.modules()} | {"torch", "itmkit"}
    kept: list[tuple[dict[int, Any], dict[int, Any]]] = []
    for module in source.modules():
        for name, hooks in vars(module).items():
            if name.endswith("_hooks") and isinstance(hooks, dict):
                kept.append((hooks, dict(hooks)))
    try:
        for hooks, every in kept:
            for key, hook in every.items():
                if _package(hook) not in packages:
                    del hooks[key]
        yield
    finally:
        for hooks, every in kept:
            hooks.clear()
            hooks.update(every)  # in their order


def _package(item: Any) -> str:
    """Where the code of a module or a hook comes from."""
    while isinstance(item, partial):
        item = item.func
    if isinstance(item, MethodType):
        item = item.__self__
    source = item if isinstance(item, FunctionType) else type(item)
    return source.__module__.partition(".")[0]


def _to_own_precision(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Cast the floating inputs of a float32 copy of a half-precision module."""
    dtype = next(p.dtype for p in module.parameters(recurse=False) if p.is_floating_point())

    def cast(value: Any) -> Any:
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(dtype) if is_float else value

    moved: tuple[tuple[Any, ...], dict[str, Any]] = tree_map(cast, (args, kwargs))
    return moved


@torch.no_grad()
def _follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """One step of the moving average, parameters and buffers matched by name."""
    new = dict(student.named_parameters())
    old = dict(teacher.named_parameters())
    if old:
        values = [new[name].detach().to(old[name]) for name in old]
        torch._foreach_lerp_(list(old.values()), values, 1 - momentum)
    buffers = dict(student.named_buffers())
    for name, buffer in teacher.named_buffers():
        buffer.copy_(buffers[name])
        if buffer.is_floating_point() and dist.is_available() and dist.is_initialized():
            dist.broadcast(buffer, src=0)  # running statistics are each rank's own
