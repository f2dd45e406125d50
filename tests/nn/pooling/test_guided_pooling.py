from __future__ import annotations

import math
from typing import Any

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
from torch import Tensor, nn

from itmkit.nn import GuidedPooling, l2_normalize

each_norm = pytest.mark.parametrize("norm", ["none", "layer"])


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(3, 5, 4, dtype=dtype), lengths_mask([5, 1, 3], 5)


def naive(module: GuidedPooling, tokens: list[Tensor]) -> Tensor:
    """One item whose tokens are all real."""
    mean = sum(tokens, torch.zeros_like(tokens[0])) / len(tokens)
    guide = module.guide_norm(module.guide(mean)).tanh()
    powers = []
    for token in tokens:
        local = module.local_norm(module.local(token)).tanh()
        powers.append(math.exp(float(module.weight(local * guide))))
    pooled = sum(
        (power / sum(powers) * token for power, token in zip(powers, tokens, strict=True)),
        torch.zeros_like(mean),
    )
    return pooled / pooled.norm()


@torch.no_grad()
@each_norm
def test_naive_loop_reference(norm: Any) -> None:
    module = biased(GuidedPooling(4, norm=norm).double())
    tokens, mask = batch(torch.float64)
    out = module(tokens, mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        torch.testing.assert_close(out[i], naive(module, list(tokens[i, :length])))


def test_batch_norm_is_that_of_torch() -> None:
    """BatchNorm1d with the positions as channels, as in SGRAF, in training and evaluation."""
    module = biased(GuidedPooling(4, norm="batch", num_tokens=5))
    norms = nn.BatchNorm1d(5), nn.BatchNorm1d(4)
    for ours, theirs in zip((module.local_norm, module.guide_norm), norms, strict=True):
        nn.init.normal_(theirs.weight)
        nn.init.normal_(theirs.bias)
        ours.load_state_dict(theirs.state_dict())

    def expected(tokens: Tensor) -> Tensor:
        local = norms[0](module.local(tokens)).tanh()
        guide = norms[1](module.guide(tokens.mean(1))).tanh()
        weights = module.weight(local * guide.unsqueeze(1)).softmax(1)
        return l2_normalize((weights * tokens).sum(1))

    for training in (True, True, False):
        for part in (module, *norms):
            part.train(training)
        tokens, _ = batch()
        torch.testing.assert_close(module(tokens), expected(tokens))
    for ours, theirs in zip((module.local_norm, module.guide_norm), norms, strict=True):
        for name, buffer in theirs.named_buffers():
            torch.testing.assert_close(ours.get_buffer(name), buffer)


@each_norm
def test_gate_and_pool_are_the_whole(norm: Any) -> None:
    module = biased(GuidedPooling(4, norm=norm))
    tokens, mask = batch()
    tokens = tokens * mask[..., None]
    gate = module.gate(tokens)
    torch.testing.assert_close(module.pool(tokens, gate, mask), module(tokens, mask))
    several = module.pool(tokens.expand(2, -1, -1, -1), gate.expand(2, -1, -1, -1), mask)
    torch.testing.assert_close(several, module(tokens, mask).expand(2, -1, -1))


@each_norm
def test_padding_and_neighbours_change_nothing(norm: Any) -> None:
    assert_each_item_is_as_alone(biased(GuidedPooling(4, norm=norm)), *batch())


@each_norm
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(norm: Any, value: float) -> None:
    module = biased(GuidedPooling(4, norm=norm))
    tokens, mask = batch()
    assert_padding_may_hold_anything(lambda x: gradients(module, x, mask), value, (tokens, mask))


@each_norm
def test_item_without_a_token_is_zero_with_zero_gradient(norm: Any) -> None:
    assert_item_without_a_token_is_zero(biased(GuidedPooling(4, norm=norm)), *batch())


def test_dropout_in_training_alone() -> None:
    module = biased(GuidedPooling(4, dropout=0.5))
    tokens, mask = batch()
    assert not torch.equal(module(tokens, mask), module(tokens, mask))
    module.eval()
    assert torch.equal(module(tokens, mask), module(tokens, mask))


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_gradcheck(norm: Any) -> None:
    batch_norm = norm == "batch"
    module = biased(GuidedPooling(3, norm=norm, num_tokens=4 if batch_norm else None).double())
    tokens = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    mask = None if batch_norm else lengths_mask([4, 2], 4)
    assert torch.autograd.gradcheck(lambda tokens: module(tokens, mask), (tokens,))


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(norm: Any, dtype: torch.dtype) -> None:
    batch_norm = norm == "batch"
    module = biased(GuidedPooling(4, norm=norm, num_tokens=5 if batch_norm else None))
    tokens, padding = batch()
    mask = None if batch_norm else padding
    assert_half_precision(module, dtype, tokens, mask, tolerance=5e-2)
    assert module.eval()(tokens.to(dtype), mask).dtype == dtype


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_compile_fullgraph(norm: Any) -> None:
    batch_norm = norm == "batch"
    module = biased(GuidedPooling(4, norm=norm, num_tokens=5 if batch_norm else None))
    tokens, mask = batch()
    assert_compiles(module, tokens, None if batch_norm else mask)


@pytest.mark.parametrize(("norm", "num_tokens"), [("none", None), ("layer", None), ("batch", 5)])
def test_state_dict_round_trip(norm: Any, num_tokens: int | None) -> None:
    source = biased(GuidedPooling(4, norm=norm, num_tokens=num_tokens))
    tokens, _ = batch()
    source(tokens)  # moves the running statistics
    target = GuidedPooling(4, norm=norm, num_tokens=num_tokens)
    target.load_state_dict(source.state_dict())
    assert torch.equal(source.eval()(tokens), target.eval()(tokens))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim is 0; expected 1 or more"),
        ({"dim": 4, "norm": "group"}, "norm is 'group'; expected one of 'none', 'batch', 'layer'"),
        ({"dim": 4, "norm": "batch"}, "num_tokens is None; expected a number for norm='batch'"),
        ({"dim": 4, "num_tokens": 5}, "num_tokens is 5; expected None for norm='none'"),
        (
            {"dim": 4, "norm": "batch", "num_tokens": 0},
            "num_tokens is 0; expected 1 or more",
        ),
        ({"dim": 4, "dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
    ],
)
def test_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GuidedPooling(**options)


def test_input_error() -> None:
    tokens, mask = batch()
    with pytest.raises(ValueError, match=r"tokens has the shape .*; expected \(batch, tokens, 8\)"):
        GuidedPooling(8)(tokens)
    with pytest.raises(ValueError, match=r"mask is .*; expected a bool tensor"):
        GuidedPooling(4)(tokens, mask.float())
    module = biased(GuidedPooling(4, norm="batch", num_tokens=6))
    with pytest.raises(
        ValueError,
        match=r'tokens has 5 tokens an item; expected 6 and none padded for norm="batch"',
    ):
        module(tokens)
    module = biased(GuidedPooling(4, norm="batch", num_tokens=5))
    with pytest.raises(
        ValueError, match=r"5 tokens an item and a mask; expected 5 and none padded"
    ):
        module(tokens, mask)
