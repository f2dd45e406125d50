"""Checks of a loss."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.losses.kind import Kind, check_kind
from itmkit.testing.expect import LARGEST_GRADIENT, expect


def check_loss(make: Callable[[], nn.Module], *, seed: int = 0) -> None:
    """Check that a loss is safe: finite, float32 under autocast, with true and bounded gradients.

    The kind of loss is read off its first arguments: a loss of scores takes ``(scores,
    positives=None)``, one of vectors ``(image, text, image_ids=None)``, one of vectors and those of
    a teacher ``(image, text, teacher_image, teacher_text, …)``.

    Args:
        make: makes the loss.
        seed: of the numbers drawn.

    Raises:
        AssertionError: with the batch on which a law is broken.
    """
    kind = _kind(make())
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([0, 1, 1, 2, 3, 4])
    wide = torch.randn(2, 6, 8, generator=generator)
    teachers = list(torch.randn(2, 6, 8, generator=generator)) if kind == "teacher" else []
    for name, (image, text) in _vector_batches(wide).items():
        rows = len(image)
        inputs = (image @ text.T,) if kind == "scores" else (image, text)
        if kind == "scores" and name.startswith("norm"):
            continue
        truth = ids[:rows, None] == ids[:rows] if kind == "scores" else ids[:rows]
        for marks in (None, truth):
            known = [one[:rows] for one in teachers]
            _check_value(make(), inputs, [*known, marks], f"the batch {name!r}")
    inputs = (0.5 * wide[0] @ wide[1].T,) if kind == "scores" else (wide[0], wide[1])
    truth = ids[:, None] == ids if kind == "scores" else ids
    everything = torch.ones_like(truth) if kind == "scores" else torch.zeros_like(truth)
    _check_value(make(), inputs, [*teachers, everything], "a batch without a negative")
    for dtype in (torch.float16, torch.bfloat16):
        halves = [one.to(dtype) for one in inputs]
        with torch.autocast("cpu", torch.bfloat16):
            value = make()(*halves, *teachers, truth)
        expect(value.dtype == torch.float32, f"the loss of {dtype} is {value.dtype}, not float32")
        exact = make()(*(half.float() for half in halves), *teachers, truth)
        expect(bool((value - exact).abs() <= 1e-6 * exact.abs() + 1e-6), f"{dtype} loses digits")
    doubles = [one.double().requires_grad_() for one in inputs]
    module = make().double().eval()
    known = [one.double() for one in teachers]
    torch.autograd.gradcheck(lambda *x: module(*x, *known, truth), doubles)
    order = torch.randperm(len(ids), generator=generator)
    moved = [one[order] for one in (*inputs, *teachers, truth)]
    if kind == "scores":
        moved = [one[:, order] for one in moved]
    shuffled, plain = make()(*moved), make()(*inputs, *teachers, truth)
    expect(
        math.isclose(shuffled.item(), plain.item(), rel_tol=1e-5, abs_tol=1e-6),
        f"the loss depends on the order of the pairs: {plain.item()} and {shuffled.item()}",
    )


def _kind(loss: nn.Module) -> Kind:
    try:
        return check_kind(loss=loss)
    except InputError as error:
        raise AssertionError(str(error)) from None


def _vector_batches(wide: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Batches on which losses break: one pair, equal vectors, wrong ones, any norm."""
    image, text = wide
    batches = {
        "of any six": (image, text),
        "of one pair": (image[:1], text[:1]),
        "of equal captions": (image, text[:1].expand(6, -1)),
        "of equal vectors": (image[:1].expand(6, -1), image[:1].expand(6, -1)),
        "of opposites": (image, -image),
        "right and large": (1e4 * image, 1e4 * image),
    }
    for norm in (0.0, 1e-12, 1e-8, 1e-4):
        small = norm * torch.nn.functional.normalize(image)
        batches[f"norm {norm}"] = (small, text)
    return batches


def _check_value(
    loss: nn.Module, inputs: Sequence[Tensor], others: Sequence[Tensor | None], where: str
) -> None:
    leaves = [copy.copy(one).detach().clone().requires_grad_() for one in inputs]
    value: Any = loss(*leaves, *others)
    expect(isinstance(value, Tensor) and value.ndim == 0, f"the loss of {where} is no scalar")
    expect(bool(value.isfinite()), f"the loss of {where} is {value.item()}")
    expect(value.requires_grad, f"the loss of {where} has no graph to its inputs")
    value.backward()
    for leaf in leaves:
        expect(leaf.grad is not None, f"an input of {where} has no gradient")
        assert leaf.grad is not None
        norm = float(leaf.grad.norm())
        expect(norm <= LARGEST_GRADIENT, f"the gradient of {where} has the norm {norm:.3g}")
