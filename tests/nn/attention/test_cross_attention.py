from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import pytest
import torch
from masked_tokens import assert_padding_may_hold_anything, lengths_mask
from masked_tokens import gradients as gradients_of
from tensor_memory import LargestTensor, kept_for_backward
from torch import Tensor

from itmkit.nn.attention.cross_attention import CrossAttentionSimilarity, cross_attention_scores

Direction = Literal["t2i", "i2t", "both"]
DIRECTIONS: list[Direction] = ["t2i", "i2t", "both"]
each_direction = pytest.mark.parametrize("direction", DIRECTIONS)


def batch(dim: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Three images and four captions of different lengths."""
    image = torch.randn(3, 5, dim, dtype=dtype)
    text = torch.randn(4, 6, dim, dtype=dtype)
    return image, text, lengths_mask([5, 3, 1], 5), lengths_mask([6, 1, 4, 2], 6)


def gradients(*inputs: Any, **options: Any) -> list[Tensor]:
    """Scores of image and text, and the gradients of both."""
    return gradients_of(partial(cross_attention_scores, **options), *inputs)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def naive_one_way(query: list[list[float]], context: list[list[float]], smooth: float) -> float:
    """Mean cosine of each query and what it finds in the context, of one pair."""
    if not query or not context:
        return 0.0
    attention = [[dot(q, v) for v in context] for q in query]
    attention = [[a if a > 0 else 0.1 * a for a in row] for row in attention]
    norms = [math.sqrt(sum(row[k] ** 2 for row in attention)) for k in range(len(context))]
    total = 0.0
    for q, row in zip(query, attention, strict=True):
        weights = [math.exp(smooth * a / norm) for a, norm in zip(row, norms, strict=True)]
        found = [0.0] * len(q)
        for weight, v in zip(weights, context, strict=True):
            found = [f + weight / sum(weights) * x for f, x in zip(found, v, strict=True)]
        total += dot(q, found) / math.sqrt(dot(q, q) * dot(found, found))
    return total / len(query)


def naive(
    image: Tensor,
    text: Tensor,
    image_mask: Tensor,
    text_mask: Tensor,
    direction: Direction,
    smooth: float,
) -> Tensor:
    scores = torch.empty(len(image), len(text), dtype=torch.float64)
    for i in range(len(image)):
        for j in range(len(text)):
            regions = [v.tolist() for v, real in zip(image[i], image_mask[i], strict=True) if real]
            words = [q.tolist() for q, real in zip(text[j], text_mask[j], strict=True) if real]
            t2i = naive_one_way(words, regions, smooth)
            i2t = naive_one_way(regions, words, smooth)
            scores[i, j] = {"t2i": t2i, "i2t": i2t, "both": (t2i + i2t) / 2}[direction]
    return scores


@pytest.mark.parametrize("name", ["cross_attention_4", "cross_attention_9"])
def test_golden_cross_attention(name: str, golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    values = {key: torch.from_numpy(array) for key, array in golden(name).items()}
    text_mask = lengths_mask(values["lengths"].tolist(), values["text"].shape[1])
    expected = {"t2i": values["t2i"], "i2t": values["i2t"]}
    expected["both"] = (expected["t2i"] + expected["i2t"]) / 2
    for direction in DIRECTIONS:
        module = CrossAttentionSimilarity(direction, smooth=float(values["smooth"]))
        scores = module(values["image"], values["text"], None, text_mask)
        torch.testing.assert_close(scores, expected[direction], atol=1e-5, rtol=0)


@each_direction
@pytest.mark.parametrize("dim", [2, 8])  # fewer and more channels than tokens
@pytest.mark.parametrize("smooth", [0.5, 9.0, 100.0])
def test_naive_loop_reference(direction: Direction, dim: int, smooth: float) -> None:
    image, text, image_mask, text_mask = batch(dim, torch.float64)
    image_mask[2] = text_mask[3] = False  # an image and a caption without a real token
    scores = cross_attention_scores(
        image, text, image_mask, text_mask, direction=direction, smooth=smooth
    )
    expected = naive(image, text, image_mask, text_mask, direction, smooth)
    torch.testing.assert_close(scores, expected, atol=1e-9, rtol=0)


@each_direction
def test_no_mask_is_a_mask_of_ones(direction: Direction) -> None:
    image, text, image_mask, text_mask = batch()
    plain = cross_attention_scores(image, text, direction=direction)
    masked = cross_attention_scores(
        image,
        text,
        torch.ones_like(image_mask),
        torch.ones_like(text_mask),
        direction=direction,
    )
    torch.testing.assert_close(plain, masked, atol=1e-6, rtol=0)


@each_direction
@pytest.mark.parametrize(
    ("n", "m", "regions", "words"), [(0, 2, 3, 4), (2, 0, 3, 4), (2, 3, 0, 4), (2, 3, 4, 0)]
)
def test_shape_of_nothing(direction: Direction, n: int, m: int, regions: int, words: int) -> None:
    image = torch.randn(n, regions, 8, requires_grad=True)
    scores = cross_attention_scores(image, torch.randn(m, words, 8), direction=direction)
    assert torch.equal(scores, torch.zeros(n, m))
    scores.sum().backward()


@each_direction
@pytest.mark.parametrize("dim", [2, 8])
@pytest.mark.parametrize("chunk_elements", [1, 31, 70, 130, 250])
def test_chunks_change_nothing(direction: Direction, dim: int, chunk_elements: int) -> None:
    inputs = batch(dim)
    whole = gradients(*inputs, direction=direction)
    parts = gradients(*inputs, direction=direction, chunk_elements=chunk_elements)
    with torch.no_grad():
        scores = cross_attention_scores(*inputs, direction=direction, chunk_elements=chunk_elements)
    for part, expected in zip([*parts, scores], [*whole, whole[0]], strict=True):
        torch.testing.assert_close(part, expected, atol=1e-6, rtol=1e-6)


@each_direction
@pytest.mark.parametrize("dim", [4, 16])
def test_memory_is_bounded_forward_and_backward(direction: Direction, dim: int) -> None:
    image = torch.randn(10, 6, dim, requires_grad=True)
    text = torch.randn(60, 5, dim, requires_grad=True)
    inputs, pairs = image.numel() + text.numel(), 10 * 60
    bound = max(200, image.numel(), text.numel(), pairs)  # all the weights are 18000
    with LargestTensor() as largest:
        with kept_for_backward() as kept:
            scores = cross_attention_scores(image, text, direction=direction, chunk_elements=200)
        scores.sum().backward()
    assert 0 < largest.elements <= bound
    assert sum(kept.values()) <= 4 * (inputs + 8 * pairs)


@each_direction
def test_padding_and_neighbours_change_nothing(direction: Direction) -> None:
    image, text, image_mask, text_mask = batch()
    scores = cross_attention_scores(image, text, image_mask, text_mask, direction=direction)
    for i, regions in enumerate(image_mask.sum(1).tolist()):
        for j, words in enumerate(text_mask.sum(1).tolist()):
            alone = cross_attention_scores(
                image[i : i + 1, :regions], text[j : j + 1, :words], direction=direction
            )
            torch.testing.assert_close(alone, scores[i : i + 1, j : j + 1], atol=1e-6, rtol=0)


@each_direction
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(direction: Direction, value: float) -> None:
    image, text, image_mask, text_mask = batch()
    assert_padding_may_hold_anything(
        lambda *inputs: gradients(*inputs, image_mask, text_mask, direction=direction),
        value,
        (image, image_mask),
        (text, text_mask),
    )


@each_direction
def test_item_without_a_token_scores_zero_with_zero_gradient(direction: Direction) -> None:
    image, text, image_mask, text_mask = batch()
    image_mask[1] = text_mask[2] = False
    scores, image_grad, text_grad = gradients(
        image, text, image_mask, text_mask, direction=direction
    )
    assert not scores[1].any()
    assert not scores[:, 2].any()
    assert not image_grad[1].any()
    assert not text_grad[2].any()
    assert image_grad.isfinite().all()
    assert text_grad.isfinite().all()
    _, image_grad, text_grad = gradients(
        image[1:2], text, image_mask[1:2], text_mask, direction=direction
    )
    assert not image_grad.any()
    assert not text_grad.any()


@each_direction
@pytest.mark.parametrize("dim", [2, 8])
def test_zero_tokens_give_no_nan(direction: Direction, dim: int) -> None:
    image, text, *_ = batch(dim)
    image[0, 1] = text[1, 2] = 0
    image[1], text[3] = 0, 0
    for result in gradients(image, text, direction=direction):
        assert result.isfinite().all()
    scores = cross_attention_scores(image, text, direction=direction)
    assert not scores[1].any()
    assert not scores[:, 3].any()


def test_zero_word_counts_as_a_cosine_of_zero() -> None:
    image, text, *_ = batch()
    longer = torch.cat([text, torch.zeros(4, 2, 8)], dim=1)
    scores = cross_attention_scores(image, longer)
    expected = cross_attention_scores(image, text) * 6 / 8
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)


@each_direction
def test_scores_stay_cosines_where_contexts_cancel(direction: Direction) -> None:
    image = torch.randn(50, 1, 8)
    image = torch.cat([image, -image], dim=1)
    text = torch.randn(6, 4, 8)
    for result in gradients(image, text, direction=direction, smooth=1e-6):
        assert result.isfinite().all()
    scores = cross_attention_scores(image, text, direction=direction, smooth=1e-6)
    assert scores.abs().max() <= 1


@each_direction
@pytest.mark.parametrize("dim", [2, 4])
def test_gradcheck(direction: Direction, dim: int) -> None:
    image = torch.randn(2, 3, dim, dtype=torch.float64)
    text = torch.randn(3, 4, dim, dtype=torch.float64)
    image_mask, text_mask = lengths_mask([3, 2], 3), lengths_mask([4, 0, 2], 4)
    for chunk_elements in (2**24, 24):
        module = CrossAttentionSimilarity(direction, chunk_elements=chunk_elements)
        assert torch.autograd.gradcheck(
            lambda image, text, module=module: module(image, text, image_mask, text_mask),
            (image.requires_grad_(), text.requires_grad_()),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("chunk_elements", [2**24, 60])
def test_half_precision(dtype: torch.dtype, chunk_elements: int) -> None:
    image, text, image_mask, text_mask = batch()
    image, text = image.to(dtype), text.to(dtype)
    expected = gradients(
        image.float(), text.float(), image_mask, text_mask, chunk_elements=chunk_elements
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = gradients(image, text, image_mask, text_mask, chunk_elements=chunk_elements)
    assert result[0].dtype == torch.float32
    torch.testing.assert_close(result[0], expected[0], atol=1e-6, rtol=0)
    for half, full in zip(result[1:], expected[1:], strict=True):
        assert half.dtype == dtype
        torch.testing.assert_close(half, full.to(dtype), atol=1e-3, rtol=1e-2)
    assert cross_attention_scores(image, text.double()).dtype == torch.float64


@each_direction
@pytest.mark.parametrize("dim", [2, 64])
def test_bf16_products_are_close_and_only_without_gradients(direction: Direction, dim: int) -> None:
    inputs = batch(dim)
    expected = gradients(*inputs, direction=direction)
    for result, exact in zip(
        gradients(*inputs, direction=direction, bf16_products=True), expected, strict=True
    ):
        assert torch.equal(result, exact)
    scores = cross_attention_scores(*inputs, direction=direction, bf16_products=True)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, expected[0])
    torch.testing.assert_close(scores, expected[0].detach(), atol=2e-2, rtol=0)


@each_direction
def test_real_words_may_stand_anywhere(direction: Direction) -> None:
    image, text, image_mask, text_mask = batch()
    turned = gradients(image, text.flip(1), image_mask, text_mask.flip(1), direction=direction)
    expected = gradients(image, text, image_mask, text_mask, direction=direction)
    expected[2] = expected[2].flip(1)
    for result, exact in zip(turned, expected, strict=True):
        torch.testing.assert_close(result, exact, atol=1e-5, rtol=1e-5)


@each_direction
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk_elements", [2**24, 200])
def test_compile_fullgraph(direction: Direction, masked: bool, chunk_elements: int) -> None:
    torch.compiler.reset()  # or the cases before count as recompilations
    image, text, *masks = batch()
    masks = masks if masked else []
    image.requires_grad_()
    module = CrossAttentionSimilarity(direction, chunk_elements=chunk_elements)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    scores, expected = compiled(image, text, *masks), module(image, text, *masks)
    torch.testing.assert_close(scores, expected)
    (grad,) = torch.autograd.grad(scores.sum(), image)
    (expected_grad,) = torch.autograd.grad(expected.sum(), image)
    torch.testing.assert_close(grad, expected_grad)


def test_smoke_module() -> None:
    module = CrossAttentionSimilarity("both", smooth=4.0, chunk_elements=100)
    assert not list(module.parameters())
    assert not module.state_dict()
    assert repr(module) == (
        "CrossAttentionSimilarity(direction='both', smooth=4.0, chunk_elements=100, "
        "bf16_products=False)"
    )
    inputs = batch()
    expected = cross_attention_scores(*inputs, direction="both", smooth=4.0)
    torch.testing.assert_close(module(*inputs), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"direction": "i2i"}, "direction is 'i2i'; expected one of 't2i', 'i2t', 'both'"),
        ({"smooth": 0.0}, "smooth is 0.0; expected a finite number above 0"),
        ({"smooth": float("inf")}, "smooth is inf; expected a finite number above 0"),
        ({"chunk_elements": 0}, "chunk_elements is 0; expected 1 or more"),
    ],
)
def test_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossAttentionSimilarity(**options)
    with pytest.raises(ValueError, match=message):
        cross_attention_scores(*batch(), **options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(2, 3, 4), torch.zeros(2, 4)), "text has the shape"),
        ((torch.zeros(2, 4), torch.zeros(2, 3, 4)), "image has the shape"),
        (
            (torch.zeros(2, 3, 5), torch.zeros(2, 3, 4)),
            r"image has the shape .*; expected .*tokens, 4\)",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 3)),
            "image_mask is .*; expected a bool tensor",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), None, torch.ones(2, 4).bool()),
            "text_mask has the shape",
        ),
    ],
)
def test_input_error(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cross_attention_scores(*inputs)
