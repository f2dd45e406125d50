"""Search against a sorted list of every query."""

from __future__ import annotations

import pytest
import torch
from score_table import Table, naive_order, rows

from itmkit.retrieval.search import best_captions, best_images


@pytest.mark.parametrize("chunk_size", [1, 4, 256])
@pytest.mark.parametrize(("k", "top_k"), [(1, 0), (4, 0), (4, 2), (2, 4), (30, 5), (3, 30)])
def test_search(k, top_k, chunk_size):
    scores, pairs, weight = torch.randn(6, 10), torch.randn(6, 10), 0.75
    matcher = Table(scores, pairs, top_k=top_k, weight=weight)
    for found, s, p in (
        (best_captions(matcher, rows(6), rows(10), k, chunk_size=chunk_size), scores, pairs),
        (best_images(matcher, rows(10), rows(6), k, chunk_size=chunk_size), scores.T, pairs.T),
    ):
        values, indices = found
        assert values.shape == indices.shape == (len(s), min(k, s.shape[1]))
        for i in range(len(s)):
            order = naive_order(s[i].tolist(), p[i].tolist(), top_k, weight)
            assert indices[i].tolist() == order[:k]
            for place, j in enumerate(order[:k]):
                blended = (1 - weight) * s[i, j] + weight * p[i, j]
                assert values[i, place] == pytest.approx(
                    float(blended if place < top_k else s[i, j])
                )


def test_of_equal_items_the_first_are_best():
    scores = torch.zeros(5, 7)
    scores[:, 4] = 1
    for chunk_size in (2, 256):
        _, found = best_captions(Table(scores), rows(5), rows(7), 3, chunk_size=chunk_size)
        assert found.tolist() == [[4, 0, 1]] * 5


def test_error():
    scores = torch.randn(4, 4)
    with pytest.raises(ValueError, match="k is 0; expected 1 or more"):
        best_captions(Table(scores, scores), rows(4), rows(4), 0)
    scores[2, 1] = torch.nan
    with pytest.raises(ValueError, match="query 2 and item 1 is nan"):
        best_captions(Table(scores), rows(4), rows(4), 2)
