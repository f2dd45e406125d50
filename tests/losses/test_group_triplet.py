from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itmkit.losses import GroupTripletLoss, TripletLoss
from itmkit.losses.functional import group_triplet_loss

BOTH = pytest.mark.parametrize("negatives", ["hardest", "all"])


def naive(
    scores: Tensor, ids: list[int], size: int, margin: float, negatives: str, reduction: str = "sum"
) -> float:
    """One direction: every row is an anchor."""
    terms = []
    for a in range(len(scores)):
        group = a // size
        own = range(group * size, group * size + size)
        positive = min(float(scores[a, p]) for p in own)
        costs = [
            max(0.0, margin + float(scores[a, k]) - positive)
            for k in range(len(scores))
            if ids[k // size] != ids[group]
        ]
        if costs:
            terms.append(max(costs) if negatives == "hardest" else sum(costs))
    return sum(terms) / (max(len(terms), 1) if reduction == "mean" else 1)


def test_smoke():
    loss = GroupTripletLoss()
    assert loss(torch.randn(6, 6)).shape == ()
    assert "group_size=2" in repr(loss)


@pytest.mark.parametrize(
    ("name", "negatives"), [("sel_loss_sum", "all"), ("sel_loss_max", "hardest")]
)
def test_golden_group_triplet(golden, name, negatives):
    arrays = golden(name)
    image = torch.from_numpy(arrays["image"]).requires_grad_()
    text = torch.from_numpy(arrays["text"]).requires_grad_()
    size, margin = int(arrays["group"]), float(arrays["margin"])
    scores = image @ text.T
    ids = list(range(len(image) // size))
    for way, side in (("i2t", scores), ("t2i", scores.T)):
        expected = pytest.approx(float(arrays[f"loss_{way}"]), rel=1e-5)
        assert naive(side.detach(), ids, size, margin, negatives) == expected
    loss = GroupTripletLoss(margin, size, negatives, reduction="sum")(scores)
    loss.backward()
    expected = torch.tensor(arrays["loss_i2t"] + arrays["loss_t2i"])
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for vectors, name in ((image, "grad_image"), (text, "grad_text")):
        torch.testing.assert_close(vectors.grad, torch.from_numpy(arrays[name]), atol=1e-5, rtol=0)


@BOTH
@pytest.mark.parametrize(("groups", "size"), [(1, 2), (2, 1), (2, 2), (5, 2), (3, 3)])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_naive_loop_reference(groups, size, shared, reduction, negatives):
    scores = torch.randn(groups * size, groups * size, dtype=torch.float64)
    ids = [7, 7, 1, 3, 1][:groups] if shared else list(range(groups))
    expected = sum(naive(side, ids, size, 0.3, negatives, reduction) for side in (scores, scores.T))
    loss = GroupTripletLoss(0.3, size, negatives, reduction=reduction)
    assert loss(scores, image_ids=torch.tensor(ids)).item() == pytest.approx(expected)
    view_ids = torch.tensor(ids).repeat_interleave(size)
    positives = view_ids[:, None] == view_ids
    assert loss(scores, positives).item() == pytest.approx(expected)
    if not shared:
        assert loss(scores).item() == pytest.approx(expected)


@BOTH
def test_one_view_is_the_triplet_loss(negatives):
    scores = torch.randn(5, 5)
    expected = TripletLoss(negatives=negatives)(scores)
    loss = GroupTripletLoss(group_size=1, negatives=negatives)(scores)
    torch.testing.assert_close(loss, expected)


@BOTH
@pytest.mark.parametrize("groups", [0, 1, 3])
def test_empty_selection_is_zero_with_a_graph(groups, negatives):
    scores = torch.randn(groups * 2, groups * 2, requires_grad=True)
    loss = GroupTripletLoss(negatives=negatives)(scores, image_ids=[0] * groups)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros_like(scores))


@settings(deadline=None, max_examples=25)
@given(
    groups=st.integers(1, 5),
    size=st.integers(1, 3),
    seed=st.integers(0, 99),
    negatives=st.sampled_from(["hardest", "all"]),
)
def test_property_permutation(groups, size, seed, negatives):
    generator = torch.Generator().manual_seed(seed)
    n = groups * size
    scores = torch.randn(n, n, generator=generator, dtype=torch.float64)
    ids = torch.randint(3, (groups,), generator=generator)
    numbers = {"group_size": size, "negatives": negatives}
    loss = group_triplet_loss(scores, None, ids, **numbers)
    order = torch.randperm(groups, generator=generator)
    views = (order[:, None] * size + torch.randperm(size, generator=generator)).flatten()
    shuffled = group_triplet_loss(scores[views][:, views], None, ids[order], **numbers)
    torch.testing.assert_close(shuffled, loss)
    torch.testing.assert_close(group_triplet_loss(scores.T, None, ids, **numbers), loss)
    all_apart = group_triplet_loss(scores, **numbers, reduction="sum")
    assert group_triplet_loss(scores, None, ids, **numbers, reduction="sum") <= all_apart


@BOTH
def test_gradcheck(negatives):
    scores = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(GroupTripletLoss(0.37, 2, negatives), (scores, None, ids))


@BOTH
def test_no_nan_for_extreme_scores(negatives):
    scores = (torch.randn(6, 6) * 3e37).requires_grad_()
    loss = GroupTripletLoss(negatives=negatives)(scores)
    loss.backward()
    assert not loss.isnan()
    assert scores.grad.isfinite().all()


def test_compile():
    loss = GroupTripletLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    scores, ids = torch.randn(6, 6), torch.tensor([0, 1, 1])
    torch.testing.assert_close(compiled(scores), loss(scores))
    torch.testing.assert_close(compiled(scores, None, ids), loss(scores, None, ids))


def test_negatives_can_be_set():
    loss = GroupTripletLoss(negatives="all")
    scores = torch.randn(6, 6)
    loss.negatives = "hardest"
    assert loss(scores) == GroupTripletLoss()(scores) != GroupTripletLoss(negatives="all")(scores)
    with pytest.raises(ValueError, match=r"negatives.*'semi'"):
        loss.negatives = "semi"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"margin": -1}, "margin.*-1"),
        ({"group_size": 0}, "group_size.*0"),
        ({"negatives": "none"}, "negatives is 'none'; expected one of"),
    ],
)
def test_error_numbers(numbers, message):
    with pytest.raises(ValueError, match=message):
        GroupTripletLoss(**numbers)
    with pytest.raises(ValueError, match=message):
        group_triplet_loss(torch.eye(2), **numbers)


@pytest.mark.parametrize("shape", [(4,), (4, 6), (5, 5)])
def test_error_scores(shape):
    with pytest.raises(ValueError, match="scores"):
        GroupTripletLoss()(torch.zeros(shape))


def test_error_image_ids():
    with pytest.raises(ValueError, match=r"image_ids has the shape \(4,\); expected \(2,\)"):
        GroupTripletLoss()(torch.zeros(4, 4), image_ids=torch.arange(4))
    with pytest.raises(ValueError, match="positives and image_ids are both given"):
        GroupTripletLoss()(torch.zeros(4, 4), torch.eye(4).bool(), torch.arange(2))
