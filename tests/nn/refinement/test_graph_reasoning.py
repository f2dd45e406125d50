from __future__ import annotations

import math

import pytest
import torch
from masked_tokens import (
    assert_each_item_is_as_alone,
    assert_item_without_a_token_is_zero,
    assert_padding_may_hold_anything,
    gradients,
    lengths_mask,
)
from module_checks import assert_compiles, assert_half_precision, biased
from torch import Tensor

from itmkit.nn import GraphReasoning


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 5, 4, dtype=dtype), lengths_mask([5, 1, 3], 5)


def naive(module: GraphReasoning, nodes: list[Tensor]) -> Tensor:
    """One pair with real nodes alone."""
    for step in module.steps:
        new = []
        for node in nodes:
            powers = [math.exp(float(step.query(node) @ step.key(other))) for other in nodes]
            message = torch.zeros_like(node)
            for power, other in zip(powers, nodes, strict=True):
                message = message + power / sum(powers) * other
            new.append(step.out(message).relu())
        nodes = new
    return nodes[0]


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 3])
def test_naive_loop_reference(steps: int) -> None:
    module = biased(GraphReasoning(4, steps=steps).double())
    nodes, mask = batch(torch.float64)
    out = module(nodes, mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        torch.testing.assert_close(out[i], naive(module, list(nodes[i, :length])))


def test_padding_and_neighbours_change_nothing() -> None:
    assert_each_item_is_as_alone(biased(GraphReasoning(4)), *batch())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(value: float) -> None:
    module = biased(GraphReasoning(4))
    nodes, mask = batch()
    assert_padding_may_hold_anything(lambda x: gradients(module, x, mask), value, (nodes, mask))


def test_pair_without_a_node_is_zero_with_zero_gradient() -> None:
    assert_item_without_a_token_is_zero(biased(GraphReasoning(4)), *batch())


def test_no_pairs() -> None:
    assert GraphReasoning(4)(torch.zeros(0, 3, 4)).shape == (0, 4)


def test_gradcheck() -> None:
    module = biased(GraphReasoning(3).double())
    nodes = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = lengths_mask([4, 2], 4)
    assert torch.autograd.gradcheck(lambda nodes: module(nodes, mask), (nodes,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    assert_half_precision(biased(GraphReasoning(4)), dtype, *batch(), tolerance=5e-2)


@pytest.mark.parametrize("masked", [False, True])
def test_compile_fullgraph(masked: bool) -> None:
    nodes, mask = batch()
    assert_compiles(biased(GraphReasoning(4)), nodes, mask if masked else None)


def test_state_dict_round_trip() -> None:
    source, target = GraphReasoning(4), GraphReasoning(4)
    target.load_state_dict(source.state_dict())
    inputs = batch()
    assert torch.equal(source(*inputs), target(*inputs))


@pytest.mark.parametrize(
    ("dim", "steps", "message"),
    [(0, 3, "dim is 0; expected 1 or more"), (4, 0, "steps is 0; expected 1 or more")],
)
def test_error(dim: int, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphReasoning(dim, steps=steps)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(2, 3, 5),), r"similarities has the shape .*; expected \(batch, tokens, 4\)"),
        ((torch.zeros(2, 3, 4), torch.ones(2, 3)), "mask is .*; expected a bool tensor"),
        (
            (torch.zeros(2, 3, 4), torch.ones(2, 4).bool()),
            r"mask has the shape .*; expected \(2, 3\)",
        ),
    ],
)
def test_input_error(inputs: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphReasoning(4)(*inputs)
