from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fusion_pairs import pairs, rows
from torch import Tensor

from itmkit.nn import FusionEncoder


def fusion(**kwargs: Any) -> FusionEncoder:
    return FusionEncoder(8, **{"num_layers": 2, "num_heads": 2, **kwargs})


@torch.no_grad()
def test_naive_loop_reference() -> None:
    module = fusion().eval()
    image_vector, image_tokens, image_mask, text_vector, text_tokens, text_mask = pairs()
    image_out, text_out = module(*pairs())
    assert image_mask is not None
    assert text_mask is not None
    kinds = module.type_embedding
    for p in range(3):
        images, words = image_tokens[p][image_mask[p]], text_tokens[p][text_mask[p]]
        x = torch.cat(
            [
                module.norm_in(image_vector[p : p + 1]) + kinds[0],
                module.norm_in(images) + kinds[2],
                module.norm_in(text_vector[p : p + 1]) + kinds[1],
                module.norm_in(words) + kinds[3],
            ]
        )
        for layer in module.layers:
            y = layer.norm_attention(x)
            query, (key, value) = layer.query(y), layer.key_value(y).chunk(2, dim=-1)
            attended = torch.zeros_like(x)
            for head in (slice(0, 4), slice(4, 8)):
                for i in range(len(x)):
                    weights = (key[:, head] @ query[i, head] / 4**0.5).softmax(0)
                    attended[i, head] = weights @ value[:, head]
            x = x + layer.out(attended)
            x = x + layer.mlp_out(F.gelu(layer.hidden(layer.norm_mlp(x))))
        x = module.norm(x)
        torch.testing.assert_close(image_out[p], x[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(text_out[p], x[1 + len(images)], atol=1e-5, rtol=0)
    expected = F.cosine_similarity(image_out, text_out)
    torch.testing.assert_close(module.pair_score(*pairs()), expected, atol=1e-6, rtol=0)


def test_train_and_eval_are_the_same_function() -> None:
    module = fusion(dropout=0.0, attention_dropout=0.0)
    out = module.train().pair_score(*pairs())
    torch.testing.assert_close(module.eval().pair_score(*pairs()), out)
    with torch.no_grad():
        torch.testing.assert_close(module.pair_score(*pairs()), out)


@pytest.mark.parametrize("name", ["dropout", "attention_dropout"])
def test_dropout_acts_in_training_only(name: str) -> None:
    module = fusion(**{"dropout": 0.0, "attention_dropout": 0.0, name: 0.3})
    assert not torch.equal(module.pair_score(*pairs()), module.pair_score(*pairs()))
    module.eval()
    assert torch.equal(module.pair_score(*pairs()), module.pair_score(*pairs()))


def test_padding_changes_nothing() -> None:
    module = fusion().eval()
    image_vector, image_tokens, image_mask, text_vector, text_tokens, text_mask = pairs()
    out = module.pair_score(*pairs())
    assert image_mask is not None
    assert text_mask is not None
    short = module.pair_score(
        image_vector[1:2], image_tokens[1:2, :3], None, text_vector[1:2], text_tokens[1:2], None
    )
    torch.testing.assert_close(out[1:2], short, atol=1e-6, rtol=0)
    filled = module.pair_score(
        image_vector,
        image_tokens.masked_fill(~image_mask[..., None], float("nan")),
        image_mask,
        text_vector,
        text_tokens.masked_fill(~text_mask[..., None], 1e4),
        text_mask,
    )
    assert torch.equal(filled, out)


def test_neighbours_change_nothing() -> None:
    module = fusion().eval()
    out = module.pair_score(*pairs())
    for p in range(3):
        alone = module.pair_score(*rows(pairs(), slice(p, p + 1)))
        torch.testing.assert_close(out[p : p + 1], alone, atol=1e-6, rtol=0)


@torch.no_grad()
def test_both_sides_and_all_tokens_are_read() -> None:
    module = fusion().eval()
    before = torch.cat(module(*pairs()), dim=-1)
    for k in (0, 1, 3, 4):
        inputs = list(pairs())
        changed = inputs[k]
        assert changed is not None
        changed[1, ...] += torch.randn(8)
        after = torch.cat(module(*inputs), dim=-1)
        assert (after[1, :8] - before[1, :8]).abs().max() > 1e-3
        assert (after[1, 8:] - before[1, 8:]).abs().max() > 1e-3


def test_every_parameter_gets_a_gradient() -> None:
    module = fusion()
    module.pair_score(*pairs()).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_gradcheck() -> None:
    module = fusion(num_layers=2).double().eval()
    inputs = rows(pairs(torch.float64), slice(1, 2))
    leaves = [x.clone().requires_grad_() for k, x in enumerate(inputs) if k in (0, 1, 3, 4)]  # type: ignore[union-attr]

    def score(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        out: Tensor = module.pair_score(a, b, inputs[2], c, d, inputs[5])
        return out

    assert torch.autograd.gradcheck(score, leaves)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    module = fusion().eval()
    expected = module.pair_score(*pairs())
    score = module.to(dtype).pair_score(*pairs(dtype))
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, expected, atol=5e-2, rtol=0)


def test_autocast() -> None:
    module = fusion().eval()
    expected = module.pair_score(*pairs())
    with torch.autocast("cpu", torch.bfloat16):
        score = module.pair_score(*pairs())
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, expected, atol=5e-2, rtol=0)


def test_compile_fullgraph() -> None:
    module = fusion().eval()
    compiled = torch.compile(module.pair_score, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*pairs()), module.pair_score(*pairs()))


def test_state_dict_round_trip() -> None:
    source, target = fusion().eval(), fusion().eval()
    target.load_state_dict(source.state_dict())
    assert torch.equal(source.pair_score(*pairs()), target.pair_score(*pairs()))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_heads": 3}, "dim is 8; expected a multiple of num_heads, 3"),
        ({"num_layers": 0}, "num_layers is 0; expected 1 or more"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
        ({"attention_dropout": -0.1}, r"attention_dropout is -0.1; expected a number in \[0, 1\)"),
        ({"mlp_ratio": 0.0}, "mlp_ratio is 0.0; expected a finite number above 0"),
    ],
)
def test_error(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fusion(**kwargs)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(2, 8), r"image_vector has the shape \(2, 8\); expected \(3, 8\)"),
        (1, torch.zeros(3, 5, 7), r"image_tokens has the shape \(3, 5, 7\); expected"),
        (2, torch.ones(3, 4, dtype=torch.bool), r"image_mask has the shape .*; expected \(3, 5\)"),
        (3, torch.zeros(3, 9), r"text_vector has the shape \(3, 9\); expected \(3, 8\)"),
        (5, torch.ones(3, 6), "text_mask is .*; expected a bool tensor"),
    ],
)
def test_input_error(position: int, value: Tensor, message: str) -> None:
    inputs = list(pairs())
    inputs[position] = value
    with pytest.raises(ValueError, match=message):
        fusion()(*inputs)


def test_number_of_pairs_error() -> None:
    inputs = [*pairs()[:4], torch.zeros(2, 6, 8), None]
    with pytest.raises(ValueError, match="text_tokens has 2 rows; expected 3"):
        fusion()(*inputs)
