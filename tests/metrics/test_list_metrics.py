"""nDCG, R-Precision and mAP@R against loops, and their own definitions."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from naive_lists import columns, naive_lists, places_of_matches

from itmkit.checks import InputError
from itmkit.metrics.functional import cross_modal_recall, list_metrics, retrieval_ranks


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 6),
    m=st.integers(1, 40),
    levels=st.integers(1, 60),
    share=st.sampled_from([0.05, 0.3, 0.9]),
    graded=st.booleans(),
)
def test_naive_loop_reference(seed, n, m, levels, share, graded):
    """Ties, several matches, grades, and queries without a match."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (n, m), generator=g).float() - levels // 2
    relevance = torch.rand(n, m, generator=g) < share
    relevance[0, 0] = True
    if graded:
        relevance = relevance * torch.randint(1, 4, (n, m), generator=g)
    for dim, s, r in ((1, scores, relevance), (0, scores.T, relevance.T)):
        queries = [i for i in range(len(r)) if r[i].any()]
        expected = [naive_lists(places_of_matches(s[i].tolist(), r[i].tolist())) for i in queries]
        found = columns(list_metrics(scores, relevance, dim=dim))
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
        at_1 = retrieval_ranks(s[queries], (r[queries] > 0)) == 0
        assert not (found[~at_1, 2] == 1).any()  # the first place is not a match


def test_perfect_and_constant_scores():
    relevance = torch.tensor([[5.0, 3.0, 0.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    assert (columns(list_metrics(relevance, relevance)) == 1).all()
    constant = columns(list_metrics(torch.zeros(2, 4), relevance))
    assert (constant[:, 1:] == 0).all()  # what does not match comes first
    discount = 1 / torch.tensor([2, 3, 4, 5]).log2()  # places 3 and 4, the lower grade first
    worst = (3 * discount[2] + 5 * discount[3]) / (5 * discount[0] + 3 * discount[1])
    assert constant[0, 0].item() == pytest.approx(worst.item())


def test_scores_that_differ_by_rounding_are_tied():
    scores = torch.tensor([[1 + 1e-7, 1.0, 0.0]])
    found = list_metrics(scores, torch.tensor([[True, False, False]]))
    assert found.r_precision.tolist() == [0.0]


def test_long_lists_count_the_first_ten():
    scores = torch.arange(30.0).flip(0)[None]
    relevance = torch.zeros(1, 30, dtype=torch.bool)
    relevance[0, 12] = True
    found = list_metrics(scores, relevance)
    assert (found.ndcg10.item(), found.map_at_r.item()) == (0.0, 0.0)


def test_grades_match_above_0():
    scores, grades = torch.randn(4, 6), torch.eye(4, 6) * 3 + (torch.arange(6) > 3) * 0.5
    ids, owners = torch.arange(4), torch.arange(6) % 4
    expected = cross_modal_recall(scores, ids, owners, relevance=grades > 0)
    assert cross_modal_recall(scores, ids, owners, relevance=grades) == expected


@pytest.mark.parametrize(
    ("relevance", "message"),
    [
        (torch.eye(2, 3), "relevance has the shape"),
        (-torch.eye(2), "relevance holds -1; expected grades of 0 or more"),
        (torch.full((2, 2), torch.nan), r"relevance\[0, 0\] is nan"),
        (torch.zeros(2, 2), "relevance has no match; expected one or more"),
    ],
)
def test_error(relevance, message):
    with pytest.raises(InputError, match=message):
        list_metrics(torch.randn(2, 2), relevance)
    with pytest.raises(InputError, match="dim is 2; expected 0 or 1"):
        list_metrics(torch.randn(2, 2), torch.eye(2), dim=2)
