"""Ranks by tile against the definition, one query at a time."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from itmkit.metrics.ranks import (
    matching_pairs,
    near_diagonal,
    ranks_by_tile,
    tied_from,
)


def naive_ranks(scores, relevant):
    """Non-matching items that score at least as high as the best match, or are tied with it."""
    ranks, eps = [], min(torch.finfo(scores.dtype).eps, torch.finfo(torch.float32).eps)
    for row, match in zip(scores.tolist(), relevant.tolist(), strict=True):
        best = max(s for s, own in zip(row, match, strict=True) if own)
        least = best - 16 * eps * max(1, abs(best))
        ranks.append(sum(s >= least for s, own in zip(row, match, strict=True) if not own))
    return ranks


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(1, 9),
    m=st.integers(1, 9),
    height=st.integers(1, 10),
    width=st.integers(1, 10),
    levels=st.integers(1, 30),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
)
def test_naive_loop_reference(seed, n, m, height, width, levels, dtype):
    """Any tile, any number of matches a query, many ties, exact and not; scores asked for once."""
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (n, m), generator=g) - levels // 2
    scores = (scores * (1 + torch.randint(9, (n, m), generator=g) * 2e-7)).to(dtype)
    relevant = torch.rand(n, m, generator=g) < 0.3
    relevant[torch.arange(max(n, m)) % n, torch.arange(max(n, m)) % m] = True
    asked = torch.zeros(n, m)

    def score(c, parts):
        for r in parts:
            asked[r, c] += 1
            yield scores[r, c].clone()

    rows, columns = ranks_by_tile(score, (n, m), relevant.nonzero(), (height, width))
    assert rows.ranks.dtype == columns.ranks.dtype == torch.int64
    assert rows.ranks.tolist() == naive_ranks(scores, relevant)
    assert columns.ranks.tolist() == naive_ranks(scores.T, relevant.T)
    assert (asked == 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tied_from(dtype):
    best = torch.tensor([-4.0, -0.5, 0.0, 0.25, 1.0, 1024.0], dtype=dtype)
    exact = torch.promote_types(dtype, torch.float32)
    eps = torch.finfo(exact).eps
    least = best.double() - 16 * eps * torch.tensor([4, 1, 1, 1, 1, 1024]).double()
    assert tied_from(best).dtype == exact
    torch.testing.assert_close(tied_from(best).double(), least, rtol=eps, atol=0)
    assert tied_from(torch.tensor(-torch.inf)) == -torch.inf  # of a query without a match


@pytest.mark.parametrize("queries", [5, 128, 300, 1000])
def test_exact_ranks_of_a_sample(queries):
    scores = torch.randint(20, (queries, 50)) * 1e-7 + torch.randint(3, (queries, 50))
    pairs = torch.stack(
        [torch.arange(max(queries, 50)) % queries, torch.arange(max(queries, 50)) % 50], 1
    )
    relevant = torch.zeros(queries, 50, dtype=torch.bool).index_put_(
        tuple(pairs.T), torch.tensor(True)
    )
    pairs = relevant.nonzero()
    for found, s, own in zip(
        ranks_by_tile(
            lambda c, parts: (scores[r, c] for r in parts), (queries, 50), pairs, (7, 11)
        ),
        (scores, scores.T),
        (relevant, relevant.T),
        strict=True,
    ):
        best = s.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        exact = ((s >= best) & ~own).sum(1)
        counted = found.exact >= 0
        assert counted.sum() >= min(len(s), 128)
        assert torch.equal(found.exact[counted], exact[counted])
        share = (found.ranks != exact)[counted].double().mean()
        assert found.decided_by_ties == pytest.approx(share.item())
        assert share > 0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 8), m=st.integers(1, 8))
def test_matching_pairs(seed, n, m):
    g = torch.Generator().manual_seed(seed)
    row_ids, column_ids = (torch.randint(5, (size,), generator=g) - 2 for size in (n, m))
    expected = (row_ids[:, None] == column_ids).nonzero()
    assert torch.equal(matching_pairs(row_ids, column_ids), expected)
    assert torch.equal(matching_pairs(row_ids, column_ids.int()), expected)


def test_near_diagonal():
    """Columns come in the order of the first row they match; pairs still name the same columns."""
    relevant = torch.rand(7, 20) < 0.2
    relevant[torch.randint(7, (20,)), torch.arange(20)] = True
    pairs = relevant.nonzero()
    order, moved = near_diagonal(pairs, 20)
    first = relevant[:, order].int().argmax(0)
    assert (first.diff() >= 0).all()
    assert torch.equal(torch.stack([moved[:, 0], order[moved[:, 1]]], 1), pairs)
    assert near_diagonal(torch.tensor([[0, 0], [0, 1], [1, 2]]), 3)[0].tolist() == [0, 1, 2]
