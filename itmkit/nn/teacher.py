"""A teacher: a frozen copy of a model that follows it slowly, in any training loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn

from itmkit.checks import InputError, check_share, type_of
from itmkit.nn.functional import map_tensors
from itmkit.nn.weights import report_misfits


class Teacher:
    r"""An exponential moving average of a model, for a training loop of your own.

    .. math::

        \theta' \leftarrow \mu\, \theta' + (1 - \mu)\, \theta

    Buffers are copied. The teacher has no gradient, stays in eval mode, and holds float32 (float64
    for a float64 model) whatever the precision of training. Hooks that others put on the model,
    such as a profiler's, are not copied. With Lightning:
    :class:`itmkit.callbacks.MomentumTeacher`.

    He et al., Momentum Contrast (MoCo), CVPR 2020; Li et al., ALBEF, NeurIPS 2021. Differs from the
    released code of MATE: that updates three times an iteration.

    Args:
        student: the model that is followed, with its weights on its device; of a
            ``DistributedDataParallel`` the module in it.
        momentum: μ, how much of the teacher an update keeps, in [0, 1]; it may be set at any time.

    Attributes:
        model: the teacher; call it as the model is called.
        student: the model that is followed.

    Raises:
        InputError: for a momentum outside [0, 1], or what is no module.

    Example:
        >>> student = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.zeros_(student.weight)
        >>> teacher = Teacher(student, momentum=0.75)
        >>> _ = nn.init.ones_(student.weight)  # as an optimizer's step changes it
        >>> teacher.update()
        >>> teacher.model.weight
        Parameter containing: tensor([[0.2500, 0.2500]])
    """

    def __init__(self, student: nn.Module, momentum: float = 0.995) -> None:
        check_share(momentum=momentum)
        if not isinstance(student, nn.Module):
            raise InputError(f"student is {type_of(student)}; expected a torch.nn.Module")
        if isinstance(student, DistributedDataParallel):
            student = student.module
        self.momentum = momentum
        self.student = student
        self.model = _frozen_copy(student)

    @torch.no_grad()
    def update(self) -> None:
        """Follow the student by one step: call it after each step of the optimizer.

        In a process group every rank calls it: running statistics are those of rank 0.
        """
        new = dict(self.student.named_parameters())
        old = dict(self.model.named_parameters())
        if old:
            values = [new[name].detach().to(old[name]) for name in old]
            follow = get_ema_multi_avg_fn(self.momentum)
            follow(list(old.values()), values, 0)  # 0: a number of averages that it ignores
        buffers = dict(self.student.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(buffers[name])
            if buffer.is_floating_point() and dist.is_available() and dist.is_initialized():
                dist.broadcast(buffer, src=0)  # running statistics are each rank's own

    def state_dict(self) -> dict[str, Any]:
        """The weights of the teacher, for a checkpoint."""
        state: dict[str, Any] = self.model.state_dict()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], *, source: str = "teacher") -> None:
        """Take the weights of a checkpoint.

        Args:
            state_dict: the weights.
            source: what an error calls them.

        Raises:
            InputError: for those of another model.
        """
        with report_misfits(self.model, state_dict, source):
            self.model.load_state_dict(state_dict)


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

    def cast(value: Tensor) -> Tensor:
        return value.to(dtype) if value.is_floating_point() else value

    moved: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(cast, (args, kwargs))
    return moved
