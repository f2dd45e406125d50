"""What holds for every module of padded tokens, whatever it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def lengths_mask(lengths: Sequence[int] | Tensor, size: int) -> Tensor:
    """Real tokens first, ``(items, size)``."""
    return torch.arange(size) < torch.as_tensor(lengths)[:, None]


def gradients(
    function: Callable[..., Any],
    *inputs: Tensor | None,
    read: Callable[[Any], Tensor] = lambda out: out,
) -> list[Tensor]:
    """The output, and the gradients of a sum in which every value of it counts.

    Args:
        function: a module or a function.
        inputs: tensors of floats have gradients, masks have none.
        read: makes one tensor of what the function returns.

    Returns:
        The output, the gradients of the inputs, and those of the parameters.
    """
    inputs = tuple(
        x if x is None or not x.is_floating_point() else x.detach().clone().requires_grad_()
        for x in inputs
    )
    out = read(function(*inputs))
    loss = (out * torch.arange(1, out.numel() + 1).view(out.shape).sin()).sum()
    sources = [x for x in inputs if x is not None and x.requires_grad]
    if isinstance(function, nn.Module):
        sources += function.parameters()
    return [out.detach(), *torch.autograd.grad(loss, sources)]


def assert_padding_may_hold_anything(
    run: Callable[..., list[Tensor]], value: float, *inputs: tuple[Tensor, Tensor]
) -> None:
    """Nothing changes by a bit when the padding is filled, and it has no gradient.

    Args:
        run: takes the inputs; returns an output, the gradients of the inputs, and more.
        value: what the padding is filled with.
        inputs: each a tensor and its mask, which may lack the last dimension.
    """
    clean = run(*(x for x, _ in inputs))
    filled = run(
        *(
            x.masked_fill(~(real if real.ndim == x.ndim else real[..., None]), value)
            for x, real in inputs
        )
    )
    for found, expected in zip(filled, clean, strict=True):
        assert torch.equal(found, expected)
    for gradient, (_, real) in zip(filled[1:], inputs, strict=False):
        assert not gradient[~real].any()


def assert_each_item_is_as_alone(module: nn.Module, tokens: Tensor, mask: Tensor) -> None:
    """One vector an item, the same without its padding and its neighbours."""
    out = module(tokens, mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        alone = module(tokens[i : i + 1, :length])
        torch.testing.assert_close(out[i : i + 1], alone, atol=1e-5, rtol=0)


def assert_item_without_a_token_is_zero(module: nn.Module, tokens: Tensor, mask: Tensor) -> None:
    """So is its gradient, and all others are finite."""
    mask = mask.clone()
    mask[1] = False
    out, gradient, *others = gradients(module, tokens, mask)
    assert not out[1].any()
    assert not gradient[1].any()
    assert all(x.isfinite().all() for x in [out, gradient, *others])
