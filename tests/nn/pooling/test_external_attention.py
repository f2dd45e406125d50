from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from masked_tokens import lengths_mask

from itmkit.nn import ExternalSpatialAttention, l2_normalize


def spy(size: int, **kwargs: float) -> ExternalSpatialAttention:
    """Attends alike to all kept tokens; on one-hot tokens its output shows which were kept."""
    module = ExternalSpatialAttention(size, **kwargs)
    torch.nn.init.zeros_(module.linear.weight)
    return module


def test_golden_esa_aggregation(golden: Callable[[str], dict[str, np.ndarray]]) -> None:
    values = {name: torch.from_numpy(array) for name, array in golden("esa_aggregation").items()}
    x = values["x"]
    mask = lengths_mask(values["lengths"].tolist(), x.shape[1])
    module = ExternalSpatialAttention(x.shape[2]).eval()
    module.linear.load_state_dict({"weight": values["weight"], "bias": values["bias"]})
    pooled = module(x, mask)
    torch.testing.assert_close(module.attention(x, mask), values["attention"], atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, values["pooled"], atol=1e-5, rtol=0)
    torch.testing.assert_close(l2_normalize(pooled), values["pooled_l2"], atol=1e-5, rtol=0)


@torch.no_grad()
def test_naive_loop_reference() -> None:
    module = ExternalSpatialAttention(4).eval()
    x, lengths = torch.randn(3, 5, 4), [5, 1, 3]
    out = module(x, lengths_mask(lengths, 5))
    for i, length in enumerate(lengths):
        for d in range(4):
            logits = [float(module.linear(x[i, n])[d]) for n in range(length)]
            total = sum(np.exp(logit) for logit in logits)
            weights = [np.exp(logit) / total for logit in logits]
            pooled = sum(w * float(x[i, n, d]) for n, w in enumerate(weights))
            assert float(out[i, d]) == pytest.approx(pooled, abs=1e-5)


def test_shape_of_views() -> None:
    module = ExternalSpatialAttention(8, num_views=3)
    x = torch.randn(4, 6, 8)
    assert module.train()(x).shape == (12, 8)
    assert module.eval()(x).shape == (4, 8)


def test_views_of_one_item_are_adjacent() -> None:
    module = ExternalSpatialAttention(8, num_views=3, drop=0)
    x = torch.randn(4, 6, 8)
    views = module(x).unflatten(0, (4, 3))
    torch.testing.assert_close(views, module.eval()(x).unsqueeze(1).expand(-1, 3, -1))


def test_views_drop_real_tokens_independently() -> None:
    size, lengths = 20, [20, 12] * 200
    module = spy(size, num_views=2, drop=0.2)
    mask = lengths_mask(lengths, size)
    out = module(torch.eye(size).expand(len(mask), -1, -1), mask).unflatten(0, (len(mask), 2))
    kept = out > 0
    assert not (kept & ~mask[:, None]).any()
    torch.testing.assert_close(out.sum(-1), torch.ones(len(mask), 2))  # weights of the kept ones
    rate = kept.sum() / (2 * mask.sum())
    assert float(rate) == pytest.approx(0.8, abs=0.02)
    both = (kept[:, 0] & kept[:, 1]).sum() / mask.sum()
    assert float(both) == pytest.approx(0.64, abs=0.03)


def test_a_view_never_drops_every_token() -> None:
    module = spy(5, num_views=2, drop=0.99)
    mask = lengths_mask([5, 1, 3] * 50, 5)
    out = module(torch.eye(5).expand(len(mask), -1, -1), mask)
    torch.testing.assert_close(out.sum(-1), torch.ones(len(out)))


def test_eval_drops_nothing() -> None:
    out = spy(5, num_views=2, drop=0.9).eval()(torch.eye(5)[None])
    torch.testing.assert_close(out, torch.full((1, 5), 0.2))


def test_item_without_a_token_is_zero_with_zero_gradient() -> None:
    for mode in (True, False):
        module = ExternalSpatialAttention(4).train(mode)
        x = torch.randn(2, 3, 4, requires_grad=True)
        out = module(x, lengths_mask([0, 3], 3))
        out.square().sum().backward()
        assert torch.equal(out[0], torch.zeros(4))
        assert x.grad is not None
        assert torch.equal(x.grad[0], torch.zeros(3, 4))
        assert x.grad.isfinite().all()


def test_padding_and_neighbours_change_nothing() -> None:
    module = ExternalSpatialAttention(4).eval()
    x = torch.randn(3, 5, 4)
    mask = lengths_mask([2, 5, 4], 5)
    out = module(x, mask)
    torch.testing.assert_close(out[:1], module(x[:1, :2]), atol=1e-6, rtol=0)
    filled = x.masked_fill(~mask[..., None], float("inf"))
    assert torch.equal(module(filled, mask), out)


def test_gradcheck() -> None:
    module = ExternalSpatialAttention(3).double().eval()
    x = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = lengths_mask([4, 2], 4)
    assert torch.autograd.gradcheck(lambda x: module(x, mask), (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    module = ExternalSpatialAttention(8, num_views=2)
    x, mask = torch.randn(2, 4, 8), lengths_mask([4, 0], 4)
    exact = module.eval()(x, mask)
    half = module.to(dtype)
    out = half(x.to(dtype), mask)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), exact, atol=3e-2, rtol=3e-2)
    assert half.train()(x.to(dtype), mask).isfinite().all()


@pytest.mark.parametrize("mode", [True, False])
def test_compile_fullgraph(mode: bool) -> None:
    module = ExternalSpatialAttention(8, num_views=2, drop=0).train(mode)
    x, mask = torch.randn(2, 4, 8), lengths_mask([4, 3], 4)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, mask), module(x, mask))


def test_state_dict_round_trip() -> None:
    source, target = ExternalSpatialAttention(4).eval(), ExternalSpatialAttention(4).eval()
    target.load_state_dict(source.state_dict())
    x = torch.randn(2, 3, 4)
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dim": 0}, "dim is 0; expected 1 or more"),
        ({"dim": 4, "num_views": 0}, "num_views is 0; expected 1 or more"),
        ({"dim": 4, "drop": 1.0}, r"drop is 1.0; expected a number in \[0, 1\)"),
    ],
)
def test_error(kwargs: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExternalSpatialAttention(**kwargs)


def test_input_error() -> None:
    with pytest.raises(ValueError, match="x has the shape"):
        ExternalSpatialAttention(4)(torch.zeros(2, 3, 5))
