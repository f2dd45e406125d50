from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad

from itmkit.nn import _internals
from itmkit.nn.layers import linear as source
from itmkit.nn.layers.linear import Linear, linear

LARGE = (2**8, 2**7, 2**7)  # rows, width, outputs: just large enough for oneDNN
each_size = pytest.mark.parametrize("sizes", [(3, 8, 5), LARGE])


def inputs(
    sizes: tuple[int, int, int], dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width, outputs = sizes
    x = torch.randn(rows, width, dtype=dtype)
    return x, torch.randn(outputs, width, dtype=dtype), torch.randn(outputs, dtype=dtype)


@each_size
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_values_and_gradients_are_those_of_torch(
    sizes: tuple[int, int, int], dtype: torch.dtype, has_bias: bool, turned: bool
) -> None:
    x, weight, bias = inputs(sizes, dtype)
    if turned:  # strides as they come from a transposed tensor
        x, weight = x.T.contiguous().T, weight.T.contiguous().T
    given = [t.requires_grad_() for t in (x, weight, bias)[: 2 + has_bias]]
    ours, plain = linear(*given), F.linear(*given)
    assert ours.dtype == dtype
    close = {"atol": 1e-1, "rtol": 2e-2} if dtype == torch.bfloat16 else {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(ours, plain, **close)
    direction = torch.randn_like(plain)
    results = torch.autograd.grad((direction * ours).sum(), given)
    expected = torch.autograd.grad((direction * plain).sum(), given)
    for result, right in zip(results, expected, strict=True):
        torch.testing.assert_close(result, right, **close)


def test_shape_of_more_dimensions() -> None:
    _, weight, bias = inputs(LARGE)
    x = torch.randn(4, 64, weight.shape[1])
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    assert linear(x[0, 0], weight).shape == weight.shape[:1]
    assert linear(x[:0], weight).shape == (0, 64, len(weight))


def test_second_derivatives_and_function_transforms() -> None:
    x, weight, _ = inputs(LARGE)
    weight.requires_grad_()
    first = grad(lambda rows: linear(rows, weight).square().sum())(x)
    expected = 2 * (x @ weight.T) @ weight
    torch.testing.assert_close(first, expected, atol=1e-2, rtol=1e-4)
    (second,) = torch.autograd.grad(first.sum(), weight)
    torch.testing.assert_close(
        second, torch.autograd.grad(expected.sum(), weight)[0], atol=1e-1, rtol=1e-3
    )


def test_gradient_of_the_bias_alone() -> None:
    x, weight, bias = inputs(LARGE)
    (result,) = torch.autograd.grad(linear(x, weight, bias.requires_grad_()).sum(), bias)
    assert torch.equal(result, torch.full_like(bias, len(x)))


def test_autocast_is_that_of_torch() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(*inputs(LARGE)).dtype == torch.bfloat16


def test_compile_fullgraph() -> None:
    given = inputs(LARGE)
    compiled = torch.compile(linear, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*given), F.linear(*given), atol=1e-4, rtol=0)


def test_state_dict_is_that_of_torch() -> None:
    x, *_ = inputs(LARGE)
    ours, plain = Linear(x.shape[1], 128), nn.Linear(x.shape[1], 128)
    ours.load_state_dict(plain.state_dict())
    torch.testing.assert_close(ours(x), plain(x), atol=1e-5, rtol=1e-5)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The operator is looked at anew, and each use of it after that is listed."""
    made: list[int] = []

    def counted(*args: Tensor) -> Tensor:
        made.append(1)
        return _internals.onednn_linear(*args)

    monkeypatch.setattr(source, "onednn_linear", counted)
    _internals.has_onednn_linear.cache_clear()
    yield made
    _internals.has_onednn_linear.cache_clear()


needs_onednn = pytest.mark.skipif(
    not _internals.has_onednn_linear(), reason="this PyTorch has no linear operator of oneDNN"
)


@needs_onednn
def test_the_way_depends_on_size_and_switch_alone(calls: list[int]) -> None:
    large, small = inputs(LARGE), inputs((3, 8, 5))
    before = torch.get_rng_state()
    first = linear(*large)
    assert calls == [1]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(linear(*large), first) for _ in range(5))
    assert len(calls) == 6
    linear(*small)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(linear(*large), F.linear(*large))
    assert len(calls) == 6


def wrong_signature(*args: object) -> Tensor:
    raise RuntimeError("_linear_pointwise() takes another argument\nand more lines")


@needs_onednn
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (wrong_signature, "another argument\\)"),
        (lambda x, weight, bias: F.linear(x, -weight, bias), "its result is wrong"),
    ],
)
def test_an_operator_that_fails_is_not_used(
    broken: Callable[..., Tensor],
    message: str,
    calls: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_internals, "onednn_linear", broken)
    large = inputs(LARGE)
    with pytest.warns(RuntimeWarning, match=message):
        result = linear(*large)
    assert torch.equal(result, F.linear(*large))
    linear(*large)  # warned of once
    assert calls == []
