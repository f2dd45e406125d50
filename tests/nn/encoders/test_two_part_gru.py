from __future__ import annotations

from operator import itemgetter

import pytest
import torch
from masked_tokens import assert_padding_may_hold_anything, gradients, lengths_mask
from module_checks import assert_compiles, assert_half_precision
from torch import Tensor
from torch_gru import torch_gru

from itmkit.nn import TwoPartGRU


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    first, second = torch.randn(2, 3, 4, 6, dtype=dtype).unbind()
    return first, second, lengths_mask([4, 1, 3], 4)


def naive(module: TwoPartGRU, first: Tensor, second: Tensor) -> Tensor:
    """One sequence after the other through the equations of a GRU, ``(2N, D)``."""
    w, v = module.input.weight.chunk(3), module.hidden.weight.chunk(3)
    b, c = module.input.bias.chunk(3), module.hidden.bias.chunk(3)
    state = torch.zeros_like(first[0])
    out = []
    for token, residual in zip([*first, *second], [*first, *first], strict=True):
        reset = torch.sigmoid(w[0] @ token + b[0] + v[0] @ state + c[0])
        update = torch.sigmoid(w[1] @ token + b[1] + v[1] @ state + c[1])
        new = torch.tanh(w[2] @ token + b[2] + reset * (v[2] @ state + c[2]))
        state = (1 - update) * new + update * state
        out.append((state + residual) / (state + residual).norm())
    return torch.stack(out)


def test_naive_loop_reference() -> None:
    module = TwoPartGRU(6).double()
    first, second, mask = batch(torch.float64)
    tokens, both = module(first, second, mask)
    assert torch.equal(both, torch.cat([mask, mask], dim=1))
    for i, length in enumerate(mask.sum(1).tolist()):
        expected = naive(module, first[i, :length], second[i, :length])
        torch.testing.assert_close(tokens[i][both[i]], expected)
    assert not tokens[~both].any()


def test_parts_are_the_whole() -> None:
    """As ``nn.GRU`` on the joined sequence; second parts of any number of dimensions."""
    module = TwoPartGRU(6)
    first, second, _ = batch()
    out, _ = torch_gru(module)(torch.cat([first, second], dim=1))
    expected = torch.nn.functional.normalize(out + torch.cat([first, first], dim=1), dim=-1)
    tokens, mask = module(first, second)
    assert mask is None
    torch.testing.assert_close(tokens, expected)
    refined, state = module.first(first)
    torch.testing.assert_close(refined, expected[:, :4])
    torch.testing.assert_close(state, out[:, 3])
    others = module.second(
        module.gates(second).expand(2, -1, -1, -1),
        state.expand(2, -1, -1),
        first.expand(2, 3, 4, 6),
    )
    torch.testing.assert_close(others, expected[:, 4:].expand(2, -1, -1, -1))


def test_padding_and_neighbours_change_nothing() -> None:
    module = TwoPartGRU(6)
    first, second, mask = batch()
    tokens, both = module(first, second, mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        alone, _ = module(first[i : i + 1, :length], second[i : i + 1, :length])
        torch.testing.assert_close(tokens[i][both[i]], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(value: float) -> None:
    module = TwoPartGRU(6)
    first, second, mask = batch()
    assert_padding_may_hold_anything(
        lambda *inputs: gradients(module, *inputs, mask, read=itemgetter(0)),
        value,
        (first, mask),
        (second, mask),
    )


def test_item_without_a_token_is_zero_with_zero_gradient() -> None:
    module = TwoPartGRU(6)
    first, second, mask = batch()
    mask[1] = False
    out, first_grad, second_grad, *rest = gradients(module, first, second, mask, read=itemgetter(0))
    for x in (out, first_grad, second_grad):
        assert not x[1].any()
        assert x[[0, 2]].isfinite().all()
    assert all(x.isfinite().all() and x.any() for x in rest)
    assert not module.first(first, mask)[1][1].any()


def test_gradcheck() -> None:
    module = TwoPartGRU(3).double()
    first, second = torch.randn(2, 2, 3, 3, dtype=torch.float64).unbind()
    mask = lengths_mask([3, 1], 3)
    assert torch.autograd.gradcheck(
        lambda first, second: module(first, second, mask)[0],
        (first.requires_grad_(), second.requires_grad_()),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    assert_half_precision(TwoPartGRU(6), dtype, *batch(), tolerance=3e-2, read=itemgetter(0))


@pytest.mark.parametrize("masked", [False, True])
def test_compile_fullgraph(masked: bool) -> None:
    first, second, mask = batch()
    assert_compiles(TwoPartGRU(6), first, second, mask if masked else None)


def test_state_dict_round_trip() -> None:
    source, target = TwoPartGRU(6), TwoPartGRU(6)
    target.load_state_dict(source.state_dict())
    inputs = batch()
    assert torch.equal(source(*inputs)[0], target(*inputs)[0])


def test_error() -> None:
    with pytest.raises(ValueError, match="dim is 0; expected 1 or more"):
        TwoPartGRU(0)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            (torch.zeros(2, 3, 5), torch.zeros(2, 3, 5)),
            r"first has the shape \(2, 3, 5\); expected",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 2, 4)),
            r"second has the shape \(2, 2, 4\); expected \(2, 3, 4\)",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 3)),
            "mask is .*; expected a bool tensor",
        ),
        (
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), torch.ones(2, 4).bool()),
            r"mask has the shape .*; expected \(2, 3\)",
        ),
    ],
)
def test_input_error(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TwoPartGRU(4)(*inputs)
