"""Every loss on every awkward batch: finite, in float32, and the number that it should be."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from itmkit.losses import (
    AdaptiveMarginTripletLoss,
    GroupTripletLoss,
    HECTLoss,
    HingeCrossEntropyLoss,
    InfoNCELoss,
    MomentumDistillationLoss,
    SigLIPLoss,
    TripletLoss,
)


class Pairs(NamedTuple):
    """A batch: the scores for the losses of scores, the vectors for the losses of vectors."""

    scores: Tensor
    image: Tensor
    text: Tensor
    ids: Tensor


AXES, SAME = torch.eye(6)[:4], torch.eye(6)[5].repeat(4, 1)  # at right angles to the axes
LARGE = 1e4 * torch.tensor([1.0, -1.0]).repeat(4, 3)
FOUR = torch.arange(4)
BATCHES = {
    "one pair": Pairs(torch.tensor([[0.5]]), AXES[:1], AXES[:1], FOUR[:1]),
    "one image": Pairs(torch.eye(4), AXES, AXES, torch.zeros_like(FOUR)),
    # In a row all scores are equal; a column holds 1/8, 2/8, 3/8, 4/8.
    "equal captions": Pairs((1 + FOUR[:, None]).expand(4, 4) / 8, AXES, SAME, FOUR),
    "equal scores": Pairs(torch.full((4, 4), 0.5), SAME, SAME, FOUR),
    "large, wrong": Pairs(1e4 - 2e4 * torch.eye(4), LARGE, -LARGE, FOUR),
    "large, right": Pairs(2e4 * torch.eye(4) - 1e4, LARGE, LARGE, FOUR),
}


def _of_scores(loss: torch.nn.Module) -> Callable[[Pairs], Tensor]:
    return lambda pairs: loss(pairs.scores, pairs.ids[:, None] == pairs.ids)


def _of_groups(loss: torch.nn.Module) -> Callable[[Pairs], Tensor]:
    """Two views, alike, of every image and caption."""
    return lambda pairs: loss(
        pairs.scores.repeat_interleave(2, 0).repeat_interleave(2, 1), image_ids=pairs.ids
    )


def _of_vectors(loss: torch.nn.Module) -> Callable[[Pairs], Tensor]:
    return lambda pairs: loss(pairs.image, pairs.text, pairs.ids)


def _of_a_teacher(loss: torch.nn.Module) -> Callable[[Pairs], Tensor]:
    """That has learnt the two sides the other way round."""
    return lambda pairs: loss(pairs.image, pairs.text, pairs.text, pairs.image, pairs.ids)


LOSSES: dict[str, Callable[[], Callable[[Pairs], Tensor]]] = {
    "triplet, hardest": lambda: _of_scores(TripletLoss()),
    "triplet, all": lambda: _of_scores(TripletLoss(negatives="all")),
    "adaptive margin": lambda: _of_scores(AdaptiveMarginTripletLoss(min_rows=2)),
    "group, hardest": lambda: _of_groups(GroupTripletLoss()),
    "group, all": lambda: _of_groups(GroupTripletLoss(negatives="all")),
    "hinge cross entropy": lambda: _of_scores(HingeCrossEntropyLoss()),
    "hect": lambda: _of_vectors(HECTLoss()),
    "distillation": lambda: _of_a_teacher(MomentumDistillationLoss()),
    "features": lambda: _of_a_teacher(
        MomentumDistillationLoss(similarity_weight=0.0, feature_weight=1.0)
    ),
}


def _log_sum(*exponents: float) -> float:
    """Of a row or column of hinge costs, over the temperature; its target costs nothing."""
    return math.log(1 + sum(map(math.exp, exponents)))


# One number a batch, in their order. Margins are 0.2; a batch of four has four anchors a direction.
HARDEST = (0, 0, (0.8 + 0.575 + 0.45 + 0.325 + 0.075) / 4, 0.4, 2 * 20000.2, 0)
ALL = (0, 0, (2.4 + 1.35 + 0.85 + 0.4 + 0.075) / 4, 1.2, 6 * 20000.2, 0)
EIGHTHS = [1 / (1 + math.exp(-k / 8)) for k in (1, 2, 3, 4)]  # probabilities of a column
COLUMNS = sum(
    _log_sum(*(max(0, 0.2 + p - true) / 0.05 for p in EIGHTHS if p != true)) for true in EIGHTHS
)
EXPECTED = {
    "triplet, hardest": HARDEST,
    "triplet, all": ALL,
    "adaptive margin": HARDEST,  # a deviation is zero, or no row counts: the margin stays
    "group, hardest": HARDEST,
    "group, all": tuple(2 * value for value in ALL),
    "hinge cross entropy": (
        0,
        0,
        _log_sum(4, 4, 4) + COLUMNS / 4,
        2 * _log_sum(4, 4, 4),
        2 * _log_sum(24, 24, 24),
        2 * math.log(4),
    ),
    # Distance of positive and hardest negative, margin 1; then half the contrast of temperature ½.
    "hect": (
        0,
        0,
        (1 + (math.sqrt(2) - 0 + 1 + 1)) / 2,  # captions have each other as negatives
        1,
        (2 - 0 + 1) + (1 + 1),
        1,
    ),
    # Logits are all equal, or 1 / 0.07 on the diagonal and 0 beside it. Beside it the target is
    # 0.6 / 4 where the teacher is sure, and 0.4 / 4 where it is not.
    "distillation": (
        0,
        3 * 0.15 / 0.07,
        (3 * 0.1 / 0.07 + math.log(4)) / 2,
        math.log(4),
        math.log(4),
        math.log(4),
    ),
    # In one of six channels the teacher, in another the student is e times as sure as elsewhere;
    # of the large vectors, one is sure of three channels and the other of the other three.
    "features": (0, 0, (math.e - 1) / (math.e + 5), 0, 2e4, 0),
}
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 2e-3}  # 1e4 becomes 9984
PRECISIONS = [
    (torch.float32, None),
    (torch.float16, None),
    (torch.bfloat16, None),
    (torch.float32, torch.float16),
    (torch.float32, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.bfloat16),
]


def autocast(dtype: torch.dtype | None) -> torch.autocast | nullcontext[None]:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype=dtype)


def in_precision(pairs: Pairs, dtype: torch.dtype) -> Pairs:
    *floating, ids = pairs
    return Pairs(*(tensor.to(dtype, copy=True).requires_grad_() for tensor in floating), ids)


@pytest.mark.parametrize(("dtype", "cast"), PRECISIONS, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_finite_gradients(loss, batch, dtype, cast):
    pairs = in_precision(BATCHES[batch], dtype)
    with autocast(cast):
        value = LOSSES[loss]()(pairs)
    value.backward()
    assert value.dtype == torch.float32
    expected = EXPECTED[loss][list(BATCHES).index(batch)]
    assert value.item() == pytest.approx(expected, rel=TOLERANCE[dtype], abs=2e-5)
    gradients = [tensor.grad for tensor in pairs[:3] if tensor.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(("dtype", "cast"), PRECISIONS, ids=str)
@pytest.mark.parametrize("loss", LOSSES)
def test_half_precision_is_float32_on_the_same_numbers(loss, dtype, cast):
    ids = torch.tensor([0, 1, 1, 2, 3])
    pairs = in_precision(Pairs(torch.randn(5, 5), *torch.randn(2, 5, 8), ids), dtype)
    with autocast(cast):
        value = LOSSES[loss]()(pairs)
    assert value.dtype == torch.float32
    assert value > 0
    assert torch.equal(value, LOSSES[loss]()(in_precision(pairs, torch.float32)))


OF_VECTORS = ("hect", "distillation", "features")
OF_SCORES = {name: make for name, make in LOSSES.items() if name not in OF_VECTORS} | {
    "info nce": lambda: _of_scores(InfoNCELoss()),
    "siglip": lambda: _of_scores(SigLIPLoss()),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [0, 1e-12, 1e-8, 3e-5, 7e-5, 1e-4, 1, 1e4, 1e15])
@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("loss", OF_VECTORS)
def test_gradients_of_vectors_of_any_norm_are_bounded(loss, alike, norm, dtype):
    """One of them so long, then all of them; the two sides alike or not."""
    vectors = torch.nn.functional.normalize(torch.randn(2, 6, 8, dtype=dtype), dim=2)
    if alike:
        vectors[1] = vectors[0]
    for scaled in (slice(0, 1), slice(None)):
        image, text = vectors.clone()
        image[scaled] *= norm
        text[scaled] *= norm
        pairs = in_precision(Pairs(torch.zeros(6, 6), image, text, torch.arange(6)), dtype)
        value = LOSSES[loss]()(pairs)
        value.backward()
        assert value.isfinite()
        for side in (pairs.image, pairs.text):
            assert side.grad.norm() <= 1e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", [0, 1e-12, 1e-8, 1e-4, 1, 1e4, 1e15])
@pytest.mark.parametrize("loss", OF_SCORES)
def test_gradients_of_scores_of_any_size_are_bounded(loss, norm, dtype):
    pairs = Pairs(torch.randn(6, 6) * norm, *torch.randn(2, 6, 8), torch.arange(6))
    pairs = in_precision(pairs, dtype)
    value = OF_SCORES[loss]()(pairs)
    value.backward()
    assert value.isfinite()
    assert pairs.scores.grad.norm() <= 1e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [0, 1e-16, 1e-12, 1e-8, 1e-4])
def test_gradients_of_similarities_near_one_are_bounded(gap, dtype):
    positive = (1 - gap * torch.ones(4, dtype=torch.float64)).to(dtype).requires_grad_()
    negatives = (1 - gap * torch.ones(4, 1, dtype=torch.float64)).to(dtype).requires_grad_()
    HECTLoss().from_similarities(positive, negatives).backward()
    assert positive.grad.norm() <= 1e6
    assert negatives.grad.norm() <= 1e6
