"""Unit vectors: exact from a norm on, fading below it, with bounded gradients everywhere."""

from __future__ import annotations

import pytest
import torch

from itmkit import nn
from itmkit.vectors import EPS, inverse_norm, l2_normalize

NORMS = (0.0, 1e-30, 1e-20, 1e-12, 1e-8, 3e-5, 7e-5, 9.99e-5, 1.001e-4, 1e-3, 1.0, 1e4, 1e15)


def test_naive_loop_reference() -> None:
    x = torch.randn(4, 3, 7)
    out = l2_normalize(x, dim=1)
    for i in range(4):
        for k in range(7):
            length = sum(float(value) ** 2 for value in x[i, :, k]) ** 0.5
            torch.testing.assert_close(out[i, :, k], x[i, :, k] / length)


def test_zero_stays_zero_with_zero_gradient() -> None:
    x = torch.zeros(2, 5, requires_grad=True)
    out = l2_normalize(x)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(2, 5))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.zeros(2, 5))


def test_what_overflows_is_zero_with_zero_gradient() -> None:
    x = torch.tensor([[0.0, 2.4e38], [3.0, 4.0]], requires_grad=True)
    square = torch.tensor([torch.inf, 4.0], requires_grad=True)
    out, scale = l2_normalize(x), inverse_norm(square)
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    assert scale.tolist() == [0.0, 0.5]
    (14 * out.sum() + scale @ torch.tensor([torch.inf, 1.0])).backward()
    assert not x.grad[0].any()
    torch.testing.assert_close(square.grad, torch.tensor([0.0, -1 / 16]))


def test_gradcheck() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(l2_normalize, (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = torch.randn(3, 64) * 1e-3  # squares underflow in fp16
    out = l2_normalize(x.to(dtype))
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), l2_normalize(x), atol=1e-2, rtol=1e-2)


def test_compile_fullgraph() -> None:
    x = torch.randn(3, 4)
    compiled = torch.compile(l2_normalize, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), l2_normalize(x))


def test_one_function_under_two_names() -> None:
    assert nn.l2_normalize is l2_normalize


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_length_and_gradient(norm: float, dtype: torch.dtype) -> None:
    direction = torch.nn.functional.normalize(torch.randn(8, dtype=torch.float64), dim=0)
    x = (norm * direction).to(dtype).requires_grad_()
    t = min(norm / EPS, 1)
    length = 2.5 * t**3 - 1.5 * t**5
    torch.testing.assert_close(l2_normalize(x), (length * direction).to(dtype))
    jacobian = torch.autograd.functional.jacobian(l2_normalize, x)
    assert torch.linalg.matrix_norm(jacobian, ord=2) <= 1.9 / EPS
    if norm == 0:
        assert not jacobian.any()


@pytest.mark.parametrize("norm", NORMS)
def test_inverse_norm_is_its_scale(norm: float) -> None:
    direction = torch.nn.functional.normalize(torch.randn(8), dim=0)
    x = norm * direction
    scale = inverse_norm(x.square().sum())
    torch.testing.assert_close(x * scale, l2_normalize(x))
    assert inverse_norm(torch.tensor(-1e-9)) == 0


@pytest.mark.parametrize("norm", [0.2 * EPS, 0.9 * EPS, 1.1 * EPS, 1.0])
def test_gradcheck_near_zero(norm: float) -> None:
    x = norm * torch.nn.functional.normalize(torch.randn(3, 4, dtype=torch.float64), dim=1)
    scaled = {"eps": 1e-3 * norm, "atol": 1e-3 / norm, "rtol": 1e-3}
    assert torch.autograd.gradcheck(l2_normalize, (x.requires_grad_(),), **scaled)
    square = x.detach().square().sum(1).requires_grad_()
    scaled = {"eps": 1e-3 * norm**2, "atol": 1e-3 / norm**3, "rtol": 1e-3}
    assert torch.autograd.gradcheck(inverse_norm, (square,), **scaled)


@pytest.mark.parametrize("eps", [1e-12, 1e-6, 1.0])
def test_value_and_slope_do_not_jump(eps: float) -> None:
    x = torch.tensor([[0.999999 * eps], [1.000001 * eps]], dtype=torch.float64).requires_grad_()
    out = l2_normalize(x, eps=eps)
    torch.testing.assert_close(out[0], out[1], rtol=1e-9, atol=0)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() < 1e-4 / eps
