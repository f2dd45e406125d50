"""The keys of candidates sort as scores and numbers do, and give both back."""

from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from itmkit.retrieval.candidates import Best, FirstTied, key, score_and_item

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
CPU = torch.device("cpu")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FLOATS, st.integers(0, 2**31 - 1)), min_size=1, max_size=20))
def test_keys_sort_as_pairs_do(pairs):
    scores, items = torch.tensor([s for s, _ in pairs]), torch.tensor([i for _, i in pairs])
    keys = key(scores, items)
    found = score_and_item(keys.sort(descending=True).values)
    wanted = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))
    assert list(zip(found[0].tolist(), found[1].tolist(), strict=True)) == wanted
    assert (keys > torch.iinfo(torch.int64).min).all()


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 12), st.integers(1, 14), st.integers(0, 2**31))
def test_blocks_in_any_order(data, items, k, seed):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(-3, 3, (4, items), generator=g) / 2
    best = Best(4, items, k, CPU)
    first = FirstTied(torch.full((4,), -0.5), torch.full((4,), 0.5), k)
    for block in torch.randperm(items, generator=g).split(data.draw(st.integers(1, items))):
        best.see(scores[:, block], slice(None), block)
        first.see(scores[:, block], block)
    found = best.found(CPU)
    tied_scores, tied_rows = first.found()
    for query, row in enumerate(scores.tolist()):
        order = sorted(range(items), key=lambda item, row=row: (-row[item], item))
        assert found.rows[query].tolist() == order[:k]
        assert found.scores[query].tolist() == [row[item] for item in order[:k]]
        left_out = row[order[k]] if k < items else -float("inf")
        assert found.left_out[query] == left_out
        tied = [item for item in range(items) if abs(row[item]) <= 0.5][:k]
        assert tied_rows[query, : len(tied)].tolist() == tied
        assert tied_scores[query, : len(tied)].tolist() == [row[item] for item in tied]
