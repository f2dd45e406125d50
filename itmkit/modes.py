"""A module in evaluation mode or on another device for a while, and back exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from itmkit.checks import InputError

if TYPE_CHECKING:  # the help of the command line waits for no torch
    import torch
    from torch import nn


class HasModules(Protocol):
    """An ``nn.Module``, or what a type says of one."""

    def modules(self) -> Iterator[nn.Module]: ...


@contextmanager
def evaluation_mode(module: HasModules) -> Iterator[None]:
    """Put a module and all in it in evaluation mode, and each back in the mode it was in.

    Unlike ``module.train()`` at the end, this leaves a frozen part in evaluation mode.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.BatchNorm1d(2).eval())
        >>> with evaluation_mode(model):
        ...     [module.training for module in model.modules()]
        [False, False, False]
        >>> [module.training for module in model.modules()]
        [True, True, False]
    """
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def on_device(module: nn.Module, device: str | torch.device) -> Iterator[None]:
    """Move a module to a device, and put its parameters and buffers back where they were.

    They come back with the values that they had before, on as many devices as they were on.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 3)
        >>> with on_device(model, "meta"):
        ...     model.weight.device.type
        'meta'
        >>> model.weight.device.type
        'cpu'
    """
    kept = [
        (part, name, tensor, tensor.data)
        for part in module.modules()
        for tensors in (part.named_parameters(recurse=False), part.named_buffers(recurse=False))
        for name, tensor in tensors
    ]
    try:
        module.to(device)
        yield
    finally:
        for part, name, tensor, data in kept:
            tensor.data = data
            setattr(part, name, tensor)


def usable_device(device: str | torch.device | None) -> torch.device:
    """A device that this machine has; None: a GPU if there is one.

    Raises:
        InputError: if it has not.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # the latter: torch was built without it
        reason = str(error).partition("\n")[0]
        raise InputError(f"device is '{device}'; expected one of this machine: {reason}") from error
