from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from itmkit.nn.attention.focal import Focal, focal_attention

FOCAL: list[Focal] = ["none", "equal", "prob", "global"]
each_focal = pytest.mark.parametrize("focal", FOCAL)


def batch(focal: Focal, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Any]]:
    """Weights of three items with one, five and four real context tokens, and what goes along."""
    mask = torch.arange(5) < torch.tensor([1, 5, 4])[:, None]
    lowest = torch.finfo(dtype).min
    weights = torch.randn(3, 4, 5, dtype=dtype).masked_fill(~mask[:, None], lowest).softmax(-1)
    options: dict[str, Any] = {"context_mask": mask}
    if focal == "global":
        options["relevance"] = torch.rand(3, 5, dtype=dtype) * mask
    return weights, options


def naive(weights: list[float], focal: Focal, relevance: list[float]) -> list[float]:
    """Weights of one query to a context that is all real."""
    if focal == "global":
        kept = [a * r for a, r in zip(weights, relevance, strict=True)]
    elif focal == "none":
        kept = weights
    else:
        confidence = [1.0 if focal == "equal" else math.sqrt(a) for a in weights]
        kept = []
        for a in weights:
            above = sum((a - b) * root for b, root in zip(weights, confidence, strict=True))
            kept.append(a if above > 1e-12 else 0.0)
        if not any(kept):
            kept = weights
    return [a / sum(kept) for a in kept]


@each_focal
def test_naive_loop_reference(focal: Focal) -> None:
    weights, options = batch(focal, torch.float64)
    out = focal_attention(weights, focal, **options)
    for i, real in enumerate(options["context_mask"].sum(1).tolist()):
        relevance = options["relevance"][i, :real].tolist() if focal == "global" else []
        for q in range(4):
            expected = naive(weights[i, q, :real].tolist(), focal, relevance)
            assert out[i, q, :real].tolist() == pytest.approx(expected, abs=1e-12)
            assert not out[i, q, real:].any()


@each_focal
def test_no_mask_is_a_mask_of_ones(focal: Focal) -> None:
    weights = torch.rand(2, 3, 5).softmax(-1)
    relevance = torch.rand(2, 5) if focal == "global" else None
    plain = focal_attention(weights, focal, relevance=relevance)
    mask = torch.ones(2, 5, dtype=torch.bool)
    masked = focal_attention(weights, focal, context_mask=mask, relevance=relevance)
    torch.testing.assert_close(plain, masked)


@pytest.mark.parametrize("focal", ["equal", "prob"])
@pytest.mark.parametrize("count", [1, 3, 7, 36])
def test_equal_weights_are_all_kept(focal: Focal, count: int) -> None:
    mask = torch.arange(40) < count
    weights = (mask / count).expand(2, 40)
    out = focal_attention(weights, focal, context_mask=mask)
    torch.testing.assert_close(out, weights)


@each_focal
def test_weights_of_sum_one_or_zero_throughout(focal: Focal) -> None:
    weights, options = batch(focal)
    weights[1] = 0
    options["context_mask"][1] = False
    weights.requires_grad_()
    out = focal_attention(weights, focal, **options)
    sums = out.sum(-1)
    torch.testing.assert_close(sums[[0, 2]], torch.ones(2, 4))
    assert not sums[1].any()
    (grad,) = torch.autograd.grad(out.square().sum(), weights)
    assert grad.isfinite().all()


def test_global_relevance_of_nothing_gives_zero() -> None:
    weights = torch.rand(1, 2, 3, requires_grad=True)
    out = focal_attention(weights, "global", relevance=torch.zeros(1, 3))
    out.sum().backward()
    assert not out.any()
    assert weights.grad is not None
    assert not weights.grad.any()


@each_focal
def test_gradcheck(focal: Focal) -> None:
    weights, options = batch(focal, torch.float64)
    options["context_mask"] = None
    logits = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda logits: focal_attention(logits.softmax(-1), focal, **options), (logits,)
    )
    if focal == "global":
        relevance = (options.pop("relevance") + 0.1).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda r: focal_attention(weights, focal, relevance=r, **options), (relevance,)
        )


@each_focal
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(focal: Focal, dtype: torch.dtype) -> None:
    weights = torch.tensor([[0.5, 0.25, 0.125, 0.125]], requires_grad=True)
    relevance = torch.tensor([0.25, 0.5, 0.125, 0.125]) if focal == "global" else None
    exact = focal_attention(weights, focal, relevance=relevance)
    half = None if relevance is None else relevance.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        out = focal_attention(weights.to(dtype), focal, relevance=half)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, atol=1e-2, rtol=1e-2)
    (grad,) = torch.autograd.grad(out.float().square().sum(), weights)
    assert grad.isfinite().all()


@each_focal
def test_compile_fullgraph(focal: Focal) -> None:
    torch.compiler.reset()
    weights, options = batch(focal)
    compiled = torch.compile(focal_attention, backend="eager", fullgraph=True)
    expected = focal_attention(weights, focal, **options)
    torch.testing.assert_close(compiled(weights, focal, **options), expected)


@pytest.mark.parametrize(
    ("focal", "relevance", "message"),
    [
        ("glo", None, "focal is 'glo'; expected one of 'none', 'equal', 'prob', 'global'"),
        ("global", None, "relevance is None; expected a tensor for focal='global'"),
        ("prob", torch.ones(3), "relevance is .*; expected None for focal='prob'"),
    ],
)
def test_error(focal: Focal, relevance: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        focal_attention(torch.ones(2, 3) / 3, focal, relevance=relevance)
