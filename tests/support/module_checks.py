"""What holds for every module with weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


def biased(module: Module) -> Module:
    """With biases that are not the zeros of the start."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return module


def assert_half_precision(
    module: nn.Module,
    dtype: torch.dtype,
    *inputs: Tensor | None,
    tolerance: float,
    read: Callable[[Any], Tensor] = lambda out: out,
) -> None:
    """Under autocast, and with all floats of a half-precision dtype, which the output then has.

    Args:
        module: in single precision; of ``dtype`` afterwards.
        dtype: of the weights and inputs.
        inputs: in single precision.
        tolerance: absolute and relative.
        read: makes one tensor of what the module returns.
    """
    exact = read(module(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = read(module(*inputs))
    torch.testing.assert_close(mixed.float(), exact, atol=tolerance, rtol=tolerance)
    halves = (x.to(dtype) if x is not None and x.is_floating_point() else x for x in inputs)
    out = read(module.to(dtype)(*halves))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, atol=tolerance, rtol=tolerance)


def assert_compiles(module: nn.Module, *inputs: Tensor | None) -> None:
    """As one graph, and to the same output."""
    torch.compiler.reset()  # or the cases before count as recompilations
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), module(*inputs))
