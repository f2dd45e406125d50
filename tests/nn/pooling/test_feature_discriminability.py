from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from masked_tokens import lengths_mask

from itmkit.nn.pooling.feature_discriminability import FeatureDiscriminability


@pytest.mark.parametrize("name", ["contranorm_0.1", "contranorm_0.5"])
def test_golden_contranorm(name: str, golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    values = {key: torch.from_numpy(array) for key, array in golden(name).items()}
    module = FeatureDiscriminability(scale=float(values["scale"]))
    torch.testing.assert_close(module(values["x"]), values["out"], atol=1e-5, rtol=0)


def naive(x: list[list[float]], scale: float, temperature: float) -> list[list[float]]:
    """One sample without padding, in plain loops."""
    lengths = [math.sqrt(sum(value**2 for value in token)) for token in x]
    out = []
    for i, token in enumerate(x):
        weights = []
        for j, other in enumerate(x):
            dot = sum(a * b for a, b in zip(token, other, strict=True))
            weights.append(math.exp(dot / (lengths[i] * lengths[j]) / temperature))
        total = sum(weights)
        out.append(
            [
                (1 + scale) * token[d]
                - scale * sum(w / total * other[d] for w, other in zip(weights, x, strict=True))
                for d in range(len(token))
            ]
        )
    return out


@pytest.mark.parametrize(("scale", "temperature"), [(0.1, 1.0), (0.5, 0.2), (0.0, 1.0)])
def test_naive_loop_reference(scale: float, temperature: float) -> None:
    module = FeatureDiscriminability(scale, temperature)
    x, lengths = torch.randn(3, 5, 4), [5, 1, 3]
    out = module(x, lengths_mask(lengths, 5))
    for i, length in enumerate(lengths):
        expected = torch.tensor(naive(x[i, :length].tolist(), scale, temperature))
        torch.testing.assert_close(out[i, :length], expected, atol=1e-5, rtol=0)
        assert torch.equal(out[i, length:], torch.zeros(5 - length, 4))


def test_no_mask_is_a_full_mask() -> None:
    x = torch.randn(2, 5, 4)
    full = torch.ones(2, 5, dtype=torch.bool)
    module = FeatureDiscriminability()
    torch.testing.assert_close(module(x), module(x, full), atol=1e-6, rtol=0)


def test_tokens_move_apart() -> None:
    x = 1 + 0.1 * torch.randn(2, 6, 8)
    out = FeatureDiscriminability(scale=0.5)(x)
    assert (torch.cdist(out, out) >= torch.cdist(x, x) - 1e-4).all()
    assert out.var(dim=1).sum() > 1.5 * x.var(dim=1).sum()


def test_shape() -> None:
    module = FeatureDiscriminability()
    for shape in [(2, 3, 4), (0, 3, 4), (2, 0, 4), (1, 1, 1)]:
        assert module(torch.ones(shape)).shape == shape
        assert module(torch.ones(shape), torch.ones(shape[:2], dtype=torch.bool)).shape == shape


def test_sample_without_a_token_is_zero_with_zero_gradient() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    out = FeatureDiscriminability()(x, lengths_mask([0, 3], 3))
    out.square().sum().backward()
    assert torch.equal(out[0], torch.zeros(3, 4))
    assert x.grad is not None
    assert torch.equal(x.grad[0], torch.zeros(3, 4))
    assert x.grad.isfinite().all()


def test_padding_and_neighbours_change_nothing() -> None:
    module = FeatureDiscriminability()
    x = torch.randn(3, 5, 4)
    mask = lengths_mask([2, 5, 4], 5)
    out = module(x, mask)
    torch.testing.assert_close(out[:1, :2], module(x[:1, :2]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_padding_holds_does_not_leak(value: float) -> None:
    module = FeatureDiscriminability()
    x = torch.randn(3, 5, 4)
    mask = lengths_mask([2, 5, 0], 5)
    filled = x.masked_fill(~mask[..., None], value).requires_grad_()
    out = module(filled, mask)
    assert torch.equal(out, module(x, mask))
    out.square().sum().backward()
    assert filled.grad is not None
    assert filled.grad.isfinite().all()


def test_zero_tokens_have_finite_gradients() -> None:
    x = torch.zeros(1, 3, 4, requires_grad=True)
    FeatureDiscriminability()(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_gradcheck() -> None:
    module = FeatureDiscriminability(scale=0.5, temperature=0.7)
    x = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = lengths_mask([4, 2, 0], 4)
    assert torch.autograd.gradcheck(lambda x: module(x, mask), (x,))
    assert torch.autograd.gradcheck(module, (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    module = FeatureDiscriminability(scale=0.5)
    x, mask = 300 * torch.randn(2, 4, 8), lengths_mask([4, 0], 4)  # squares overflow in fp16
    out = module(x.to(dtype), mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), module(x, mask), atol=8, rtol=3e-2)


def test_autocast_keeps_the_dtype() -> None:
    x = torch.randn(2, 4, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = FeatureDiscriminability()(x)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, FeatureDiscriminability()(x), atol=1e-2, rtol=0)


def test_compile_fullgraph() -> None:
    module = FeatureDiscriminability()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x, mask = torch.randn(2, 4, 8), lengths_mask([4, 0], 4)
    torch.testing.assert_close(compiled(x, mask), module(x, mask))
    torch.testing.assert_close(compiled(x), module(x))


def test_no_parameters() -> None:
    assert not FeatureDiscriminability().state_dict()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scale": -0.1}, "scale is -0.1; expected a finite number of at least 0"),
        ({"scale": float("nan")}, "scale is nan; expected a finite number of at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a finite number above 0"),
    ],
)
def test_error(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureDiscriminability(**kwargs)


def test_input_error() -> None:
    module = FeatureDiscriminability()
    with pytest.raises(ValueError, match=r"x has the shape \(3, 4\); expected"):
        module(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"mask is .*; expected a bool tensor"):
        module(torch.zeros(2, 3, 4), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"mask has the shape .*; expected \(2, 3\)"):
        module(torch.zeros(2, 3, 4), torch.ones(2, 4, dtype=torch.bool))
