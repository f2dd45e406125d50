"""Blocks of scores are the whole."""

from __future__ import annotations

import pytest
import torch
from score_table import Table, rows

from itmkit.retrieval.score import pair_scores, score_matrix


@pytest.mark.parametrize("chunk_size", [1, 3, 50])
def test_score_matrix_blocks(chunk_size):
    scores = torch.randn(7, 11)
    matcher = Table(scores).train()
    result = score_matrix(matcher, rows(7), rows(11), chunk_size=chunk_size)
    assert torch.equal(result, scores)
    assert result.dtype == torch.float32
    assert matcher.training


def test_pair_scores():
    pairs = torch.randn(7, 11)
    chosen = torch.stack([torch.randint(7, (20,)), torch.randint(11, (20,))], 1)
    for chunk_size in (1, 6, 20):
        result = pair_scores(Table(None, pairs), rows(7), rows(11), chosen, chunk_size=chunk_size)
        assert torch.equal(result, pairs[chosen[:, 0], chosen[:, 1]])
    assert pair_scores(Table(None, pairs), rows(7), rows(11), chosen[:0]).shape == (0,)


def test_error():
    scores = torch.randn(4, 4)
    matcher = Table(scores, scores)
    with pytest.raises(ValueError, match="chunk_size is 0; expected 1 or more"):
        score_matrix(matcher, rows(4), rows(4), chunk_size=0)
    matcher.rerank = lambda images, texts, pairs: torch.zeros(len(pairs), 1)
    with pytest.raises(ValueError, match=r"rerank gives the shape \(2, 1\); expected \(2,\)"):
        pair_scores(matcher, rows(4), rows(4), torch.zeros(2, 2, dtype=torch.int64))
