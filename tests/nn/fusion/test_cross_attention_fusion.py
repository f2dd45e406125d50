from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fusion_pairs import pairs, rows
from torch import Tensor

from itmkit.nn import CrossAttentionFusion


def fusion(**kwargs: Any) -> CrossAttentionFusion:
    torch.manual_seed(0)
    return CrossAttentionFusion(8, **{"num_layers": 1, "num_heads": 2, **kwargs})


@torch.no_grad()
def test_naive_loop_reference() -> None:
    module = fusion(num_layers=0).eval()
    image_vector, image_tokens, image_mask, text_vector, text_tokens, text_mask = pairs()
    assert image_mask is not None
    assert text_mask is not None
    kinds = module.type_embedding
    found = module.pair_score(*pairs())
    for p in range(3):
        image = [module.norm_image(image_vector[p]) + kinds[0]]
        image += [module.norm_image(x) + kinds[1] for x in image_tokens[p][image_mask[p]]]
        words = [module.norm_text(text_vector[p]) + kinds[2]]
        words += [module.norm_text(x) + kinds[3] for x in text_tokens[p][text_mask[p]]]
        words = [module.norm(word) for word in words]
        shares = torch.stack([module.word_weight(word)[0] for word in words]).softmax(0)
        expected = torch.zeros(())
        for word, share in zip(words, shares, strict=True):
            cosines = []
            for head in (slice(0, 4), slice(4, 8)):
                keys, values = zip(*(module.key_value(x).chunk(2) for x in image), strict=True)
                query = module.query(word)[head]
                logits = torch.stack([key[head] @ query / 4**0.5 for key in keys])
                read = logits.softmax(0) @ torch.stack([value[head] for value in values])
                cosines.append(F.cosine_similarity(read, module.expected(word)[head], dim=0))
            c = torch.stack(cosines)
            judged = module.out(F.gelu(module.hidden(c)))[0]
            expected = expected + share * (module.log_scale.exp() * c.mean() + judged)
        torch.testing.assert_close(found[p], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_rows_of_pairs_are_those_pairs() -> None:
    module = fusion().eval()
    inputs = pairs()
    which = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0]])
    found = module.pair_score(*inputs, pairs=which)
    for score, (i, j) in zip(found, which.tolist(), strict=True):
        image, text = rows(inputs, slice(i, i + 1)), rows(inputs, slice(j, j + 1))
        alone = module.pair_score(*image[:3], *text[3:])
        torch.testing.assert_close(score[None], alone, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing() -> None:
    module = fusion().eval()
    image_vector, image_tokens, image_mask, text_vector, text_tokens, text_mask = pairs()
    assert image_mask is not None
    assert text_mask is not None
    filled = module.pair_score(
        image_vector,
        image_tokens.masked_fill(~image_mask[..., None], float("nan")),
        image_mask,
        text_vector,
        text_tokens.masked_fill(~text_mask[..., None], 1e4),
        text_mask,
    )
    assert torch.equal(filled, module.pair_score(*pairs()))


@torch.no_grad()
def test_both_sides_and_all_tokens_are_read() -> None:
    module = fusion().eval()
    before = module.pair_score(*pairs())
    for k in (0, 1, 3, 4):
        inputs = list(pairs())
        changed = inputs[k]
        assert changed is not None
        changed[1, ...] += torch.randn(8)
        assert (module.pair_score(*inputs)[1] - before[1]).abs() > 1e-4


@torch.no_grad()
def test_attention_is_that_of_a_loop() -> None:
    module = fusion(num_layers=0).eval()
    image_vector, image_tokens, image_mask, _, text_tokens, text_mask = pairs()
    assert image_mask is not None
    assert text_mask is not None
    kinds = module.type_embedding
    expected = torch.zeros(3, text_tokens.shape[1], image_tokens.shape[1])
    for p in range(3):
        image = [module.norm_image(image_vector[p]) + kinds[0]]
        image += [module.norm_image(x) + kinds[1] for x in image_tokens[p][image_mask[p]]]
        keys = torch.stack([module.key_value(x).chunk(2)[0] for x in image])
        for w in text_mask[p].nonzero()[:, 0]:
            query = module.query(module.norm(module.norm_text(text_tokens[p, w]) + kinds[3]))
            looks = [
                (keys[:, head] @ query[head] / 4**0.5).softmax(0)[1:]
                for head in (slice(0, 4), slice(4, 8))
            ]
            expected[p, w, image_mask[p]] = torch.stack(looks).mean(0)
    torch.testing.assert_close(module.attention(*pairs()), expected)


def test_every_parameter_gets_a_gradient() -> None:
    module = fusion()
    module.pair_score(*pairs()).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_gradcheck() -> None:
    module = fusion().double().eval()
    inputs = rows(pairs(torch.float64), slice(1, 2))
    leaves = [x.clone().requires_grad_() for k, x in enumerate(inputs) if k in (0, 1, 3, 4)]  # type: ignore[union-attr]

    def score(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        out: Tensor = module.pair_score(a, b, inputs[2], c, d, inputs[5])
        return out

    assert torch.autograd.gradcheck(score, leaves)


def test_autocast_and_compile() -> None:
    module = fusion().eval()
    expected = module.pair_score(*pairs())
    with torch.autocast("cpu", torch.bfloat16):
        score = module.pair_score(*pairs())
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, expected, atol=0.2, rtol=0)
    compiled = torch.compile(module.pair_score, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*pairs()), expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 3}, "dim is 8; expected a multiple of num_heads, 3"),
        ({"num_layers": -1}, "num_layers is -1; expected 0 or more"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0; expected a finite number above 0"),
    ],
)
def test_error(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusion(**kwargs)


def test_error_of_inputs() -> None:
    inputs = [*pairs()[:4], torch.zeros(2, 6, 8), None]
    with pytest.raises(ValueError, match="text_tokens has 2 rows; expected 3"):
        fusion()(*inputs)
    with pytest.raises(ValueError, match=r"pairs is .* of the shape \(3,\); expected int64"):
        fusion()(*pairs(), pairs=torch.arange(3))
