"""List metrics of galleries, with a second stage, judgements, folds and processes' shares."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from naive_lists import columns, naive_lists, places_of_matches
from score_table import Table, gallery

from itmkit.metrics import Judgements, bootstrap_recall
from itmkit.metrics.functional import cross_modal_recall
from itmkit.retrieval import evaluate, rank_queries


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 7),
    m=st.integers(1, 30),
    k=st.integers(0, 20),
    levels=st.integers(1, 60),
    weight=st.sampled_from([0.25, 1.0]),
    chunk_size=st.sampled_from([1, 3, 256]),
    keep=st.sampled_from([0, 2]),
)
def test_naive_loop_reference(seed, n, m, k, levels, weight, chunk_size, keep):
    g = torch.Generator().manual_seed(seed)
    scores, pairs = (torch.randint(levels, (n, m), generator=g).float() for _ in range(2))
    grades = torch.randint(4, (n, m), generator=g) * (torch.rand(n, m, generator=g) < 0.4)
    grades[torch.arange(m) % n, torch.arange(m)] = 2
    table = Table(scores, pairs, top_k=k, weight=weight)
    own = gallery(torch.arange(m) % n, n)
    options = {"relevance": grades, "chunk_size": chunk_size, "keep": keep}
    (found,) = rank_queries(table, own, **options)
    sides = {"i2t": (scores, pairs, grades), "t2i": (scores.T, pairs.T, grades.T)}
    for side, (s, p, r) in sides.items():
        expected = []
        for a, b, c in zip(s.tolist(), p.tolist(), r.tolist(), strict=True):
            candidates = sorted(range(len(a)), key=lambda j, a=a: (-a[j], j))[:k]
            if any(c):
                expected.append(naive_lists(places_of_matches(a, c, b, candidates, weight)))
        lists = columns(getattr(found, f"{side}_lists"))
        torch.testing.assert_close(lists, torch.tensor(expected, dtype=torch.float64))
        for column, name in enumerate(("ndcg10", "rprecision", "map_at_r")):
            mean = 100 * lists[:, column].mean().item()
            assert found.recall()[f"{side}_{name}"] == pytest.approx(mean)
    plain = evaluate(table, own, relevance=grades > 0)
    assert found.recall() == plain | {k: v for k, v in found.recall().items() if k not in plain}


def test_judgements_are_the_matrix_with_fewer_queries():
    scores, grades = torch.randn(5, 9), torch.rand(5, 9) * (torch.rand(5, 9) < 0.4)
    grades[torch.arange(9) % 5, torch.arange(9)] = 1
    own = gallery(torch.arange(9) % 5, 5)
    pairs = grades.nonzero()
    judged = Judgements(pairs, grades[pairs[:, 0], pairs[:, 1]])
    whole = rank_queries(Table(scores), own, relevance=grades)[0]
    assert rank_queries(Table(scores), own, relevance=judged)[0].recall() == whole.recall()
    some = Judgements(pairs, None, torch.tensor([1, 3]), torch.tensor([0, 8, 4]))
    (found,) = rank_queries(Table(scores), own, relevance=some, keep=3)
    assert found.image_ids.tolist() == [1, 3]
    assert found.text_ids.tolist() == [0, 4, 8]
    assert found.text_image_ids.tolist() == [0, 4, 3]
    assert found.i2t.equal(whole.i2t[[1, 3]])
    assert found.t2i.equal(whole.t2i[[0, 4, 8]])
    assert found.i2t_lists.map_at_r.equal(whole.i2t_lists.map_at_r[[1, 3]])
    assert (len(found.i2t_best.items), len(found.t2i_best.items)) == (2, 3)


def test_captions_without_a_match_are_searched_only():
    scores = torch.tensor([[0.5, 0.9, 0.1], [0.2, 0.1, 0.4]])
    judged = Judgements(torch.tensor([[0, 0], [1, 2]]))
    (found,) = rank_queries(Table(scores), gallery(torch.tensor([0, 0, 1]), 2), relevance=judged)
    assert (found.i2t.tolist(), found.t2i.tolist()) == ([1, 0], [0, 0])


def test_lists_where_wanted():
    scores, ids = torch.randn(4, 4), torch.arange(4)
    own, matches = gallery(ids, 4), torch.eye(4, dtype=torch.bool)
    plain = cross_modal_recall(scores, ids, ids)
    assert evaluate(Table(scores), own) == plain
    assert evaluate(Table(scores), own, relevance=matches) == plain
    found = evaluate(Table(scores), own, lists=True, protocol=2)
    assert found["t2i_map_at_r"] == found["t2i_r1"]  # one match a query
    assert found["fold_1/i2t_ndcg10"] + found["fold_2/i2t_ndcg10"] == 2 * found["i2t_ndcg10"]
    assert evaluate(Table(scores), own, relevance=matches.float(), lists=False) == plain


def test_intervals_hold_the_mean():
    scores = torch.randn(40, 80)
    folds = rank_queries(Table(scores), gallery(torch.arange(80) % 40, 40), lists=True, protocol=2)
    bounds = bootstrap_recall(folds, samples=120)
    recall = [fold.recall() for fold in folds]
    assert list(bounds) == list(recall[0])
    for key, (low, high) in bounds.items():
        assert low <= sum(fold[key] for fold in recall) / 2 <= high
    # each resample by hand: the images that were drawn, with their captions
    one = folds[0]
    value = bootstrap_recall(one, samples=1, seed=3)["t2i_ndcg10"][0]
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(20, (1, 20), generator=generator)[0].bincount(minlength=20)
    weights = drawn[one.text_image_ids.unique(return_inverse=True)[1]].double()
    expected = 100 * (weights * one.t2i_lists.ndcg10).sum() / weights.sum()
    assert value == pytest.approx(expected.item())
