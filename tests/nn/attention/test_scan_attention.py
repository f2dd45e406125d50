from __future__ import annotations

import math

import pytest
import torch
from masked_tokens import assert_padding_may_hold_anything, gradients, lengths_mask
from module_checks import assert_compiles, assert_half_precision, biased
from torch import Tensor

from itmkit.nn import ScanAttention
from itmkit.nn.attention.scan_attention import attention_weights


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Three items: queries, context, and their masks."""
    query, context = torch.randn(3, 4, 6, dtype=dtype), torch.randn(3, 5, 6, dtype=dtype)
    return query, context, lengths_mask([4, 1, 3], 4), lengths_mask([2, 5, 1], 5)


def naive_weights(similarity: list[list[float]], smooth: float) -> list[list[float]]:
    """Weights of one item, all of whose tokens are real."""
    shares = [[s if s > 0 else 0.1 * s for s in row] for row in similarity]
    norms = [math.sqrt(sum(row[c] ** 2 for row in shares)) for c in range(len(shares[0]))]
    weights = []
    for row in shares:
        powers = [math.exp(smooth * s / norm) for s, norm in zip(row, norms, strict=True)]
        weights.append([power / sum(powers) for power in powers])
    return weights


@pytest.mark.parametrize("smooth", [0.5, 9.0, 100.0])
def test_naive_loop_reference_of_weights(smooth: float) -> None:
    similarity = torch.randn(3, 4, 5, dtype=torch.float64)
    queries, contexts = [4, 1, 3], [2, 5, 1]
    weights = attention_weights(
        similarity, lengths_mask(queries, 4), lengths_mask(contexts, 5), smooth=smooth
    )
    for i, (q, c) in enumerate(zip(queries, contexts, strict=True)):
        expected = torch.tensor(naive_weights(similarity[i, :q, :c].tolist(), smooth))
        torch.testing.assert_close(weights[i, :q, :c].float(), expected)
        assert not weights[i, :, c:].any()


@torch.no_grad()
def test_naive_loop_reference() -> None:
    module = biased(ScanAttention(6, smooth=4.0).double())
    query, context, query_mask, context_mask = batch(torch.float64)
    out = module(query, context, query_mask, context_mask)
    for i in range(3):
        words = query[i][query_mask[i]]
        regions = context[i][context_mask[i]]
        similarity = [
            [float(module.query(word) @ module.key(region)) for region in regions] for word in words
        ]
        for k, weights in enumerate(naive_weights(similarity, 4.0)):
            found = sum(weight * region for weight, region in zip(weights, regions, strict=True))
            assert isinstance(found, Tensor)
            torch.testing.assert_close(out[i, k], found / found.norm())
        assert not out[i, len(words) :].any()


def test_masks_broadcast() -> None:
    similarity = torch.randn(2, 3, 4, 5)
    query_mask, context_mask = lengths_mask([4, 2, 1], 4), lengths_mask([5, 3], 5)
    weights = attention_weights(similarity, query_mask, context_mask.unsqueeze(1))
    for i in range(2):
        for j in range(3):
            alone = attention_weights(similarity[i, j], query_mask[j], context_mask[i])
            torch.testing.assert_close(weights[i, j], alone)


def test_no_mask_is_a_mask_of_ones() -> None:
    module = biased(ScanAttention(6))
    query, context, query_mask, context_mask = batch()
    masked = module(query, context, torch.ones_like(query_mask), torch.ones_like(context_mask))
    torch.testing.assert_close(module(query, context), masked)


def test_query_without_similarity_attends_alike_to_all() -> None:
    weights = attention_weights(torch.zeros(2, 4), smooth=9.0)
    torch.testing.assert_close(weights, torch.full((2, 4), 0.25))


def test_padding_and_neighbours_change_nothing() -> None:
    module = biased(ScanAttention(6))
    query, context, query_mask, context_mask = batch()
    out = module(query, context, query_mask, context_mask)
    for i, (q, c) in enumerate(zip(query_mask.sum(1), context_mask.sum(1), strict=True)):
        alone = module(query[i : i + 1, :q], context[i : i + 1, :c])
        torch.testing.assert_close(out[i : i + 1, :q], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(value: float) -> None:
    module = biased(ScanAttention(6))
    query, context, query_mask, context_mask = batch()
    assert_padding_may_hold_anything(
        lambda *inputs: gradients(module, *inputs, query_mask, context_mask),
        value,
        (query, query_mask),
        (context, context_mask),
    )


def test_item_without_a_token_is_zero_with_zero_gradient() -> None:
    module = biased(ScanAttention(6))
    query, context, query_mask, context_mask = batch()
    query_mask[0] = context_mask[1] = False
    out, query_grad, context_grad, *rest = gradients(
        module, query, context, query_mask, context_mask
    )
    for x in (out, query_grad, context_grad):
        assert not x[:2].any()
    assert out[2].any()
    assert all(x.isfinite().all() for x in [query_grad, context_grad, *rest])


def test_gradcheck() -> None:
    module = biased(ScanAttention(3).double())
    query = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    masks = lengths_mask([3, 2], 3), lengths_mask([1, 4], 4)
    assert torch.autograd.gradcheck(lambda q, c: module(q, c, *masks), (query, context))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    module = biased(ScanAttention(6, smooth=2.0))
    query, context, *masks = batch()
    masks[1][0] = False
    assert_half_precision(module, dtype, query, context, *masks, tolerance=5e-2)


@pytest.mark.parametrize("masked", [False, True])
def test_compile_fullgraph(masked: bool) -> None:
    query, context, *masks = batch()
    assert_compiles(biased(ScanAttention(6)), query, context, *(masks if masked else []))


def test_state_dict_round_trip() -> None:
    source, target = ScanAttention(6), ScanAttention(6)
    target.load_state_dict(source.state_dict())
    inputs = batch()
    assert torch.equal(source(*inputs), target(*inputs))


def test_smoke_repr() -> None:
    assert repr(ScanAttention(6, smooth=4.0)).startswith("ScanAttention(\n  smooth=4.0")


@pytest.mark.parametrize(
    ("dim", "smooth", "message"),
    [
        (0, 9.0, "dim is 0; expected 1 or more"),
        (4, 0.0, "smooth is 0.0; expected a finite number above 0"),
        (4, math.inf, "smooth is inf; expected a finite number above 0"),
        (4, math.nan, "smooth is nan; expected a finite number above 0"),
    ],
)
def test_error(dim: int, smooth: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScanAttention(dim, smooth=smooth)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(2, 4), torch.zeros(2, 3, 4)), r"query has the shape \(2, 4\); expected"),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 5)),
            r"context has the shape \(2, 3, 5\); expected",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 3)),
            "query_mask is a torch.float32 tensor; expected a bool tensor",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), None, torch.ones(2, 4).bool()),
            r"context_mask has the shape \(2, 4\); expected \(2, 3\)",
        ),
    ],
)
def test_input_error(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScanAttention(4)(*inputs)
