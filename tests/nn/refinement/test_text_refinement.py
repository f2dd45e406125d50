from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from masked_tokens import assert_padding_may_hold_anything, gradients, lengths_mask
from module_checks import assert_compiles, assert_half_precision, biased
from torch import Tensor
from torch_gru import torch_gru

from itmkit.nn import ScanAttention, TextRefinement, l2_normalize
from itmkit.nn.refinement.text_refinement import RefinedText

LENGTHS = [4, 1, 3, 2]  # words of the captions
REGIONS = [5, 2]


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four captions and the context of two images, and their masks."""
    text = l2_normalize(torch.randn(4, 4, 6, dtype=dtype))
    context = l2_normalize(torch.randn(2, 5, 6, dtype=dtype))
    return text, context, lengths_mask(LENGTHS, 4), lengths_mask(REGIONS, 5)


def attend(attention: ScanAttention, queries: list[Tensor], context: list[Tensor]) -> list[Tensor]:
    similarity = [[float(attention.query(q) @ attention.key(c)) for c in context] for q in queries]
    shares = [[s if s > 0 else 0.1 * s for s in row] for row in similarity]
    norms = [math.sqrt(sum(row[c] ** 2 for row in shares)) for c in range(len(context))]
    found = []
    for row in shares:
        powers = [math.exp(attention.smooth * s / norm) for s, norm in zip(row, norms, strict=True)]
        total = torch.zeros_like(context[0])
        for power, token in zip(powers, context, strict=True):
            total = total + power / sum(powers) * token
        found.append(total / total.norm())
    return found


def naive(
    module: TextRefinement, words: list[Tensor], context: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Refined words and vector of one pair, all of whose tokens are real."""
    visual = attend(module.attention, attend(module.attention, words, words), context)
    out, _ = torch_gru(module.gru)(torch.stack([*words, *visual]))
    tokens = [x + word for x, word in zip(out, [*words, *words], strict=True)]
    refined = torch.stack([token / token.norm() for token in tokens])
    return refined, module.pool(refined[None])[0]


@torch.no_grad()
def test_naive_loop_reference() -> None:
    module = biased(TextRefinement(6, attention=ScanAttention(6, smooth=4.0)).double())
    text, context, text_mask, context_mask = batch(torch.float64)
    refined = module(text, context, text_mask, context_mask)
    assert torch.equal(refined.mask, torch.cat([text_mask, text_mask], dim=1))
    for i, regions in enumerate(REGIONS):
        for j, words in enumerate(LENGTHS):
            tokens, vector = naive(module, list(text[j, :words]), list(context[i, :regions]))
            torch.testing.assert_close(refined.tokens[i, j][refined.mask[j]], tokens)
            torch.testing.assert_close(refined.vector[i, j], vector)
    assert not refined.tokens[:, ~refined.mask].any()


def test_no_mask_is_a_mask_of_ones() -> None:
    module = biased(TextRefinement(6))
    text, context, text_mask, context_mask = batch()
    plain = module(text, context)
    masked = module(text, context, torch.ones_like(text_mask), torch.ones_like(context_mask))
    assert plain.mask is None
    torch.testing.assert_close(plain.tokens, masked.tokens)
    torch.testing.assert_close(plain.vector, masked.vector)


def test_pair_alone_is_the_same() -> None:
    module = biased(TextRefinement(6))
    text, context, *masks = batch()
    refined = module(text, context, *masks)
    for i, regions in enumerate(REGIONS):
        for j, words in enumerate(LENGTHS):
            alone = module(text[j : j + 1, :words], context[i : i + 1, :regions])
            tokens = refined.tokens[i, j][refined.mask[j]]
            torch.testing.assert_close(tokens, alone.tokens[0, 0], atol=1e-5, rtol=0)
            torch.testing.assert_close(refined.vector[i, j], alone.vector[0, 0], atol=1e-5, rtol=0)


def test_trimmed_captions_are_the_same() -> None:
    module = biased(TextRefinement(6))
    text, context, text_mask, _ = batch()
    text_mask[:, 3:] = False
    captions, images = module.caption_part(text, text_mask), module.image_part(context)
    whole, short = module.pairs(captions, images), module.pairs(captions.trimmed(3), images)
    assert short.tokens.shape == (2, 4, 6, 6)
    torch.testing.assert_close(short.tokens[:, short.mask], whole.tokens[:, whole.mask])
    torch.testing.assert_close(short.vector, whole.vector)


@pytest.mark.parametrize(("n", "m"), [(0, 2), (2, 0), (0, 0), (1, 1)])
def test_shape(n: int, m: int) -> None:
    refined = TextRefinement(6)(torch.randn(m, 4, 6), torch.randn(n, 5, 6))
    assert refined.tokens.shape == (n, m, 8, 6)
    assert refined.vector.shape == (n, m, 6)


def outputs(refined: RefinedText) -> Tensor:
    return torch.cat([refined.tokens, refined.vector.unsqueeze(2)], dim=2)  # (n, m, 2L + 1, D)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("hole", [False, True])
def test_padding_may_hold_anything(hole: bool, value: float) -> None:
    module = biased(TextRefinement(6))
    text, context, text_mask, context_mask = batch()
    if hole:
        text_mask[0, 1] = context_mask[0, 2] = False
    assert_padding_may_hold_anything(
        lambda *inputs: gradients(module, *inputs, text_mask, context_mask, read=outputs),
        value,
        (text, text_mask),
        (context, context_mask),
    )


def test_item_without_a_token_is_finite() -> None:
    module = biased(TextRefinement(6))
    text, context, text_mask, context_mask = batch()
    text_mask[2] = context_mask[1] = False
    out, text_grad, context_grad, *rest = gradients(
        module, text, context, text_mask, context_mask, read=outputs
    )
    assert not out[:, 2].any()
    assert not text_grad[2].any()
    assert not context_grad[1].any()
    assert all(x.isfinite().all() for x in [out, text_grad, context_grad, *rest])


def test_contexts_that_cancel_are_finite() -> None:
    """The length of what a word finds comes from the Gram matrix, which may round below zero."""
    module = biased(TextRefinement(6, attention=ScanAttention(6, smooth=1e-6)))
    text, context, *_ = batch()
    out, *grads = gradients(module, text, torch.cat([context, -context], dim=1), read=outputs)
    assert all(x.isfinite().all() for x in [out, *grads])


def test_every_parameter_has_a_gradient() -> None:
    module = biased(TextRefinement(6))
    outputs(module(*batch())).sin().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name


def test_gradcheck() -> None:
    module = biased(TextRefinement(3).double())
    text = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    context = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    text_mask = torch.tensor([[True, True, True], [True, True, False]])
    context_mask = torch.tensor([[True, True, True, False], [True, True, True, True]])
    assert torch.autograd.gradcheck(
        lambda text, context: outputs(module(text, context, text_mask, context_mask)),
        (text, context),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    module = biased(TextRefinement(6, attention=ScanAttention(6, smooth=2.0)))
    assert_half_precision(module, dtype, *batch(), tolerance=5e-2, read=outputs)


@pytest.mark.parametrize("masked", [False, True])
def test_compile_fullgraph(masked: bool) -> None:
    text, context, *masks = batch()
    assert_compiles(biased(TextRefinement(6)), text, context, *(masks if masked else []))


def test_state_dict_round_trip() -> None:
    source, target = TextRefinement(6), TextRefinement(6)
    target.load_state_dict(source.state_dict())
    inputs = batch()
    assert torch.equal(outputs(source(*inputs)), outputs(target(*inputs)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim is 0; expected 1 or more"),
        ({"dim": 4, "attention": ScanAttention(5)}, "attention.dim is 5; expected 4"),
        ({"dim": 4, "dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
    ],
)
def test_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextRefinement(**options)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(2, 3, 5), torch.zeros(2, 3, 4)), r"text has the shape \(2, 3, 5\); expected"),
        ((torch.zeros(2, 3, 4), torch.zeros(2, 4)), r"context has the shape \(2, 4\); expected"),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 3)),
            "text_mask is .*; expected a bool tensor",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), None, torch.ones(2, 4).bool()),
            r"context_mask has the shape .*; expected \(2, 3\)",
        ),
    ],
)
def test_input_error(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextRefinement(4)(*inputs)
