from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from itmkit.losses.hinge_cross_entropy import HingeCrossEntropyLoss, hinge_cross_entropy_loss


def naive(
    scores: Tensor, positives: Tensor | None = None, margin: float = 0.2, tau: float = 0.05
) -> float:
    if positives is None:
        positives = torch.eye(len(scores), dtype=torch.bool)
    total = 0.0
    for table, true in ((scores.sigmoid(), positives), (scores.T.sigmoid(), positives.T)):
        logs = []
        for i, j in true.nonzero().tolist():
            negatives = [float(table[i, k]) for k in range(table.shape[1]) if not true[i, k]]
            costs = [max(0.0, margin + p - float(table[i, j])) for p in negatives]
            if costs:
                logs.append(math.log(1 + sum(math.exp(cost / tau) for cost in costs)))
        total += sum(logs) / max(len(logs), 1)
    return total


def test_smoke():
    loss = HingeCrossEntropyLoss()
    assert loss(torch.rand(4, 4)).shape == ()
    assert "temperature=0.05" in repr(loss)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (7, 7), (4, 6), (6, 3)])
def test_naive_loop_reference(shape):
    scores = torch.randn(shape, dtype=torch.float64)
    loss = HingeCrossEntropyLoss(0.3, 0.1)
    positives = torch.rand(shape) > 0.6
    expected = naive(scores, positives, 0.3, 0.1)
    assert loss(scores, positives).item() == pytest.approx(expected, abs=1e-12)
    if shape[0] == shape[1]:
        expected = naive(scores, None, 0.3, 0.1)
        assert loss(scores).item() == pytest.approx(expected, abs=1e-12)
        half = HingeCrossEntropyLoss(0.3, 0.1, weight=0.5, reduction="sum")
        assert half(scores).item() == pytest.approx(len(scores) * expected / 2, abs=1e-12)
        found = hinge_cross_entropy_loss(scores, margin=0.3, temperature=0.1, weight=0.5)
        assert found.item() == pytest.approx(expected / 2, abs=1e-12)


def test_is_the_cross_entropy_of_the_costs_both_ways():
    logits, target = torch.randn(6, 6), torch.arange(6)
    scores = logits.sigmoid()
    rows = (0.2 + scores - scores.diagonal()[:, None]).relu().fill_diagonal_(0) / 0.05
    columns = (0.2 + scores - scores.diagonal()).relu().fill_diagonal_(0) / 0.05
    expected = F.cross_entropy(rows, target) + F.cross_entropy(columns.T, target)
    torch.testing.assert_close(hinge_cross_entropy_loss(logits), expected)


def test_least_without_costs():
    scores = (9 * torch.eye(5)).requires_grad_()
    loss = hinge_cross_entropy_loss(scores)
    assert loss.item() == pytest.approx(2 * math.log(5))
    assert hinge_cross_entropy_loss(torch.randn(5, 5)) > loss


def test_small_temperature_is_the_hardest_hinge():
    scores = torch.rand(6, 6, dtype=torch.float64)
    costs = 0.2 + scores - scores.diagonal()[:, None], 0.2 + scores - scores.diagonal()
    hardest = [
        cost.relu().fill_diagonal_(0).amax(dim).mean()
        for cost, dim in zip(costs, (1, 0), strict=True)
    ]
    loss = 1e-6 * hinge_cross_entropy_loss(scores.logit(), temperature=1e-6)
    torch.testing.assert_close(loss, sum(hardest), atol=1e-4, rtol=0)


def test_diagonal_is_the_default_and_everything_true_costs_nothing():
    scores = torch.randn(5, 5)
    everything = torch.ones(5, 5, dtype=torch.bool)
    assert hinge_cross_entropy_loss(scores, everything) == 0
    diagonal = torch.eye(5, dtype=torch.bool)
    expected = hinge_cross_entropy_loss(scores)
    torch.testing.assert_close(hinge_cross_entropy_loss(scores, diagonal), expected)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("further", [False, True])
def test_empty_selection_is_zero_with_a_graph(n, further):
    scores = torch.randn(n, n, requires_grad=True)
    loss = hinge_cross_entropy_loss(scores, torch.ones(n, n).bool() if further else None)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(scores.grad, torch.zeros(n, n))


@settings(deadline=None, max_examples=50)
@given(
    values=st.integers(1, 5).flatmap(
        lambda n: st.one_of(
            st.lists(s, min_size=n * n, max_size=n * n)
            for s in (
                st.floats(width=32, allow_nan=False, allow_infinity=False),
                st.floats(-1e4, 1e4, width=16),
            )
        )
    ),
    seed=st.integers(0, 9),
)
@example([3e38, 3e38, 3e38, -3e38], 0)
def test_property_finite_for_finite_scores(values, seed):
    n = math.isqrt(len(values))
    positives = torch.rand(n, n, generator=torch.Generator().manual_seed(seed)) > 0.7
    for dtype in (torch.float32, torch.float64):
        for mask in (None, positives):
            scores = torch.tensor(values, dtype=dtype).view(n, n).requires_grad_()
            loss = hinge_cross_entropy_loss(scores, mask)
            loss.backward()
            assert loss.isfinite()
            assert scores.grad.isfinite().all()


def test_large_scores():
    scores = torch.tensor([[0.0, 1e4], [-1e4, 0.0]], requires_grad=True)
    loss = hinge_cross_entropy_loss(scores)
    loss.backward()
    # Row 0 and column 1 cost (1 + 0.2 - 0.5) / 0.05 each, the other two log 2.
    assert loss.item() == pytest.approx(math.log1p(math.exp(14)) + math.log(2))
    assert scores.grad.isfinite().all()


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 6), seed=st.integers(0, 99))
def test_property_permutation_and_sides(n, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, n, generator=generator, dtype=torch.float64)
    loss = hinge_cross_entropy_loss(scores)
    order = torch.randperm(n, generator=generator)
    torch.testing.assert_close(hinge_cross_entropy_loss(scores[order][:, order]), loss)
    torch.testing.assert_close(hinge_cross_entropy_loss(scores.T), loss)
    assert hinge_cross_entropy_loss(scores, margin=0.5) >= loss >= 0


def test_gradcheck():
    scores = torch.rand(5, 5, dtype=torch.float64, requires_grad=True)
    positives = torch.rand(5, 5) > 0.6
    loss = HingeCrossEntropyLoss(0.37, 0.3)
    assert torch.autograd.gradcheck(loss, (scores,))
    assert torch.autograd.gradcheck(loss, (scores, positives))


def test_compile():
    loss = HingeCrossEntropyLoss()
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    scores, positives = torch.rand(5, 5), torch.rand(5, 5) > 0.6
    torch.testing.assert_close(compiled(scores), loss(scores))
    in_parts = torch.compile(loss, backend="eager")  # the true pairs are counted
    torch.testing.assert_close(in_parts(scores, positives), loss(scores, positives))


@pytest.mark.parametrize(
    ("name", "value"), [("margin", -1), ("margin", math.inf), ("temperature", 0), ("weight", -1)]
)
def test_error_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        HingeCrossEntropyLoss(**{name: value})
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        hinge_cross_entropy_loss(torch.eye(2), **{name: value})


def test_error_shapes():
    for shape in ((), (3,), (3, 4)):
        with pytest.raises(ValueError, match="scores"):
            hinge_cross_entropy_loss(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"positives.*\(1, 3\)"):
        hinge_cross_entropy_loss(torch.zeros(3, 3), torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"positives.*expected a bool"):
        hinge_cross_entropy_loss(torch.zeros(3, 3), torch.zeros(3, 3))


def test_state_dict_is_empty():
    assert not HingeCrossEntropyLoss().state_dict()
