from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itmkit.losses import TripletLoss
from itmkit.losses.functional import triplet_loss

BOTH = pytest.mark.parametrize("negatives", ["hardest", "all"])


REDUCTIONS = pytest.mark.parametrize("reduction", ["mean", "sum"])


def naive(
    scores: Tensor, positives: Tensor, margin: float, negatives: str, reduction: str = "sum"
) -> float:
    aggregate = max if negatives == "hardest" else sum
    rows, columns = [], []
    for i, j in positives.nonzero().tolist():
        row = [k for k in range(scores.shape[1]) if not positives[i, k]]
        column = [k for k in range(scores.shape[0]) if not positives[k, j]]
        costs = [max(0.0, float(margin + scores[i, k] - scores[i, j])) for k in row]
        rows += [aggregate(costs)] if costs else []
        costs = [max(0.0, float(margin + scores[k, j] - scores[i, j])) for k in column]
        columns += [aggregate(costs)] if costs else []
    if reduction == "sum":
        return sum(rows) + sum(columns)
    return sum(sum(side) / max(len(side), 1) for side in (rows, columns))


def test_smoke():
    loss = TripletLoss()
    assert loss(torch.eye(4)).item() == 0
    assert "margin=0.2" in repr(loss)


@BOTH
@REDUCTIONS
@pytest.mark.parametrize("size", [1, 2, 7])
def test_naive_loop_reference_diagonal(size, reduction, negatives):
    scores = torch.randn(size, size, dtype=torch.float64)
    expected = naive(scores, torch.eye(size, dtype=torch.bool), 0.3, negatives, reduction)
    loss = TripletLoss(0.3, negatives, reduction=reduction)
    assert loss(scores).item() == pytest.approx(expected)


@BOTH
@REDUCTIONS
@pytest.mark.parametrize("shape", [(1, 5), (4, 7), (6, 3)])
def test_naive_loop_reference_positives(shape, reduction, negatives):
    scores = torch.randn(shape, dtype=torch.float64)
    positives = torch.rand(shape) > 0.6
    expected = naive(scores, positives, 0.3, negatives, reduction)
    loss = TripletLoss(0.3, negatives, reduction=reduction)
    assert loss(scores, positives).item() == pytest.approx(expected)


@BOTH
def test_diagonal_mask_is_the_default(negatives):
    scores = torch.randn(5, 5)
    loss = TripletLoss(negatives=negatives)
    assert torch.allclose(loss(scores), loss(scores, torch.eye(5, dtype=torch.bool)))


def test_golden_triplet_hardest(golden):
    arrays = golden("triplet_hardest")
    image = torch.from_numpy(arrays["image"]).requires_grad_()
    text = torch.from_numpy(arrays["text"]).requires_grad_()
    loss = TripletLoss(margin=float(arrays["margin"]), reduction="sum")(image @ text.T)
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(arrays["loss"]), atol=1e-5, rtol=1e-5)
    for vectors, name in ((image, "grad_image"), (text, "grad_text")):
        torch.testing.assert_close(vectors.grad, torch.from_numpy(arrays[name]), atol=1e-5, rtol=0)


@BOTH
@pytest.mark.parametrize(
    ("shape", "positives"),
    [
        ((1, 1), None),
        ((0, 0), None),
        ((3, 4), False),
        ((3, 4), True),
        ((0, 4), True),
        ((4, 0), True),
    ],
)
def test_empty_selection_is_zero_with_a_graph(shape, positives, negatives):
    scores = torch.randn(shape, requires_grad=True)
    mask = None if positives is None else torch.full(shape, positives)
    loss = TripletLoss(negatives=negatives)(scores, mask)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros(shape))


@BOTH
def test_no_nan_for_extreme_scores(negatives):
    scores = torch.tensor([[3e38, -3e38, 0], [1e-40, 0, 3e38], [0, 0, 0]], requires_grad=True)
    loss = TripletLoss(negatives=negatives)(scores)
    loss.backward()
    assert not loss.isnan()
    assert scores.grad.isfinite().all()


@settings(deadline=None, max_examples=25)
@given(
    size=st.integers(1, 6), seed=st.integers(0, 99), negatives=st.sampled_from(["hardest", "all"])
)
def test_property_permutation_and_sides(size, seed, negatives):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, size, generator=generator, dtype=torch.float64)
    loss = triplet_loss(scores, negatives=negatives)
    order = torch.randperm(size, generator=generator)
    torch.testing.assert_close(triplet_loss(scores[order][:, order], negatives=negatives), loss)
    torch.testing.assert_close(triplet_loss(scores.T, negatives=negatives), loss)
    assert triplet_loss(scores, margin=0.5, negatives=negatives) >= loss >= 0
    larger = triplet_loss(scores, negatives="all")
    assert larger >= triplet_loss(scores, negatives="hardest") - 1e-12


@BOTH
def test_gradcheck(negatives):
    scores = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    positives = torch.rand(4, 5) > 0.6
    assert torch.autograd.gradcheck(TripletLoss(0.37, negatives), (scores, positives))


def test_tensor_margin():
    scores = torch.randn(4, 4)
    expected = triplet_loss(scores, margin=0.3)
    torch.testing.assert_close(triplet_loss(scores, margin=torch.tensor(0.3)), expected)


@BOTH
def test_compile(negatives):
    loss = TripletLoss(negatives=negatives)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    scores, positives = torch.randn(4, 4), torch.rand(4, 4) > 0.5
    torch.testing.assert_close(compiled(scores), loss(scores))
    # With all negatives the positives are counted, which torch 2.8 traces on request only.
    counting = negatives == "all"
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=counting):
        torch.testing.assert_close(compiled(scores, positives), loss(scores, positives))


def test_negatives_can_be_set():
    loss = TripletLoss(negatives="all")
    scores = torch.randn(5, 5)
    loss.negatives = "hardest"
    assert loss(scores) == TripletLoss()(scores) != TripletLoss(negatives="all")(scores)
    with pytest.raises(ValueError, match=r"negatives.*'semi'"):
        loss.negatives = "semi"
    assert loss.negatives == "hardest"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"margin": -1}, "margin.*-1"),
        ({"margin": float("nan")}, "margin.*nan"),
        ({"negatives": "none"}, "negatives is 'none'; expected one of"),
    ],
)
def test_error_numbers(numbers, message):
    with pytest.raises(ValueError, match=message):
        TripletLoss(**numbers)
    with pytest.raises(ValueError, match=message):
        triplet_loss(torch.eye(2), **numbers)


def test_error_shapes():
    loss = TripletLoss()
    with pytest.raises(ValueError, match=r"scores.*\(3,\)"):
        loss(torch.zeros(3))
    with pytest.raises(ValueError, match=r"scores.*\(3, 4\)"):
        loss(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"positives.*\(4, 3\)"):
        loss(torch.zeros(3, 4), torch.zeros(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"positives.*expected a bool"):
        loss(torch.zeros(3, 4), torch.zeros(3, 4))


def test_state_dict_is_empty():
    assert not TripletLoss().state_dict()
