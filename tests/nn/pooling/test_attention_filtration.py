from __future__ import annotations

import copy
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
from module_checks import assert_compiles, assert_half_precision
from torch import Tensor

from itmkit.nn import AttentionFiltration

each_mode = pytest.mark.parametrize("training", [True, False])


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 5, 4, dtype=dtype), lengths_mask([5, 1, 3], 5)


def filtration(training: bool = False, dim: int = 4) -> AttentionFiltration:
    """With a batch normalisation that does something in eval mode too."""
    module = AttentionFiltration(dim)
    with torch.no_grad():
        module.norm.weight.fill_(1.5)
        module.norm.bias.fill_(-0.3)
        module.norm.running_mean.fill_(0.2)
        module.norm.running_var.fill_(0.7)
    return module.train(training)


@torch.no_grad()
@each_mode
def test_naive_loop_reference(training: bool) -> None:
    module = filtration(training).double()
    vectors, mask = batch(torch.float64)
    pairs = [list(v[real]) for v, real in zip(vectors, mask, strict=True)]
    logits = [[float(module.weight(vector)) for vector in pair] for pair in pairs]
    flat = [logit for pair in logits for logit in pair]
    mean, var = float(module.norm.running_mean), float(module.norm.running_var)
    if training:
        mean = sum(flat) / len(flat)
        var = sum((logit - mean) ** 2 for logit in flat) / len(flat)
    out = module(vectors, mask)
    for i, pair in enumerate(pairs):
        total = torch.zeros(4, dtype=torch.float64)
        for vector, logit in zip(pair, logits[i], strict=True):
            normed = 1.5 * (logit - mean) / math.sqrt(var + 1e-5) - 0.3
            total = total + vector / (1 + math.exp(-normed))
        torch.testing.assert_close(out[i], total / total.norm())


def test_batch_norm_is_that_of_torch() -> None:
    """Without padding, all similarities of all pairs are the batch of one channel."""
    module = AttentionFiltration(4)
    norm = torch.nn.BatchNorm1d(1)
    for _ in range(2):
        vectors, _ = batch()
        gates = norm(module.weight(vectors).flatten(0, 1)).sigmoid().view(3, 1, 5)
        expected = torch.nn.functional.normalize((gates @ vectors).squeeze(1), dim=-1)
        torch.testing.assert_close(module(vectors), expected)
    for name, buffer in norm.named_buffers():
        torch.testing.assert_close(module.norm.get_buffer(name), buffer)


def test_padding_and_neighbours_change_nothing() -> None:
    assert_each_item_is_as_alone(filtration(), *batch())


@each_mode
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(training: bool, value: float) -> None:
    start = filtration(training)
    vectors, mask = batch()

    def run(vectors: Tensor) -> list[Tensor]:
        module = copy.deepcopy(start)
        return [*gradients(module, vectors, mask), *module.buffers()]

    assert_padding_may_hold_anything(run, value, (vectors, mask))


@each_mode
def test_pair_without_a_vector_is_zero_with_zero_gradient(training: bool) -> None:
    assert_item_without_a_token_is_zero(filtration(training), *batch())


@each_mode
def test_no_pairs(training: bool) -> None:
    assert filtration(training)(torch.zeros(0, 3, 4)).shape == (0, 4)


def test_gates_that_vanish_give_zero() -> None:
    module = filtration()
    with torch.no_grad():
        module.norm.bias.fill_(-1e4)
    out, *grads = gradients(module, *batch())
    assert not out.any()
    assert all(grad.isfinite().all() for grad in grads)


@each_mode
def test_gradcheck(training: bool) -> None:
    module = filtration(training, 3).double()
    vectors = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = lengths_mask([4, 2], 4)
    assert torch.autograd.gradcheck(lambda vectors: module(vectors, mask), (vectors,))


@each_mode
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(training: bool, dtype: torch.dtype) -> None:
    assert_half_precision(filtration(training), dtype, *batch(), tolerance=3e-2)


@each_mode
def test_compile_fullgraph(training: bool) -> None:
    assert_compiles(filtration(training), *batch())


def test_state_dict_round_trip() -> None:
    source, target = filtration(), AttentionFiltration(4).eval()
    target.load_state_dict(source.state_dict())
    inputs = batch()
    assert torch.equal(source(*inputs), target(*inputs))


def test_error() -> None:
    with pytest.raises(ValueError, match="dim is 0; expected 1 or more"):
        AttentionFiltration(0)


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
        AttentionFiltration(4)(*inputs)
