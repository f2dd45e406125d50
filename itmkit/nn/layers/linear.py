"""Linear layers, and inner products, at the speed that the processor has."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.nn._internals import has_onednn_linear, onednn_linear

_LEAST_PRODUCTS = 2**22  # below, the call costs more than it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""As :func:`torch.nn.functional.linear`, :math:`x W^\top + b`: every inner product of rows.

    PyTorch multiplies fp32 matrices on a CPU by MKL, which is slower than oneDNN on some processors
    that are not Intel's. Products of at least 2²² multiplications hence go through oneDNN, wherever
    PyTorch has it, unless ``torch.backends.mkldnn.enabled`` is False.

    The rule is fixed, not measured, because the two round differently: a run must take the same way
    when it is repeated, resumed, or run in another process, and their times are often too close to
    give the same order twice (on one busy AMD EPYC, MKL took 0.9 to 1.3 times as long as oneDNN).

    Shape:
        x: ``(..., D)``; weight: ``(O, D)``; bias: ``(O,)`` or None; result: ``(..., O)``.

    Example:
        >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
        tensor([[11., 17.]])
    """
    if (
        torch.compiler.is_compiling()  # first: a comparison of sizes would fix them in an export
        or x.ndim < 2
        or x.numel() * weight.shape[0] < _LEAST_PRODUCTS
        or not x.device.type == weight.device.type == "cpu"
        or not x.dtype == weight.dtype == torch.float32
        or torch.is_autocast_enabled("cpu")
        or not torch.backends.mkldnn.enabled
        or not has_onednn_linear()
    ):
        return F.linear(x, weight, bias)
    rows: Tensor = _OneDNNLinear.apply(x.flatten(0, -2), weight, bias)
    products: Tensor = rows.unflatten(0, x.shape[:-1])
    return products


class Linear(nn.Linear):
    """``torch.nn.Linear`` by :func:`linear`; the same parameters and state."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return onednn_linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Any], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (grad,) = ctx.saved_tensors, grads
        return (
            linear(grad, weight.T) if ctx.needs_input_grad[0] else None,
            linear(grad.T, x.T) if ctx.needs_input_grad[1] else None,
            grad.sum(0) if ctx.needs_input_grad[2] else None,
        )
