"""Ranks and recall against loops, the golden values and their own definition."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from itmkit.metrics import functional
from itmkit.metrics.functional import (
    cross_modal_recall,
    five_fold_recall,
    list_metrics,
    recall_from_ranks,
    retrieval_ranks,
)


def naive_ranks(scores, relevant):
    ranks = []
    for i in range(len(scores)):
        row = scores[i].tolist()
        best = max(s for j, s in enumerate(row) if relevant[i, j])
        ranks.append(sum(s >= best for j, s in enumerate(row) if not relevant[i, j]))
    return torch.tensor(ranks)


def naive_recall(i2t, t2i):
    result = {}
    for side, ranks in (("i2t", i2t.numpy()), ("t2i", t2i.numpy())):
        for k in (1, 5, 10):
            result[f"{side}_r{k}"] = 100.0 * sum(r < k for r in ranks) / len(ranks)
        result[f"{side}_medr"] = math.floor(np.median(ranks)) + 1
        result[f"{side}_meanr"] = ranks.mean() + 1
    result["rsum"] = sum(v for k, v in result.items() if "_r" in k)
    return result


def captions_of(n, per_image):
    return torch.arange(n), torch.arange(n).repeat_interleave(per_image)


KEYS = (
    [f"i2t_{k}" for k in ("r1", "r5", "r10", "medr", "meanr")]
    + [f"t2i_{k}" for k in ("r1", "r5", "r10", "medr", "meanr")]
    + ["rsum"]
)


def test_golden_retrieval_metrics(golden):
    data = golden("retrieval_metrics")
    scores = torch.from_numpy(data["sims"])
    n, m = scores.shape
    image_ids, text_image_ids = captions_of(n, m // n)
    relevant = image_ids[:, None] == text_image_ids[None]
    for side, dim in (("i2t", 1), ("t2i", 0)):
        ranks = retrieval_ranks(scores, relevant, dim=dim)
        np.testing.assert_array_equal(ranks.numpy(), data[f"{side}_ranks"])
    result = cross_modal_recall(scores, image_ids, text_image_ids)
    columns = data["columns"].tolist()
    rsum = 0.0
    for side in ("i2t", "t2i"):
        for key in ("r1", "r5", "r10", "medr", "meanr"):
            expected = data[side][columns.index(key)]
            assert result[f"{side}_{key}"] == pytest.approx(expected, abs=1e-5)
            rsum += expected * (key in ("r1", "r5", "r10"))
    assert result["rsum"] == pytest.approx(rsum, abs=1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), n=st.integers(1, 6), extra=st.integers(0, 8), levels=st.integers(1, 5))
def test_naive_loop_reference(data, n, extra, levels):
    """Few distinct scores make many ties; the captions per image differ and come in any order."""
    seed = data.draw(st.integers(0, 2**31))
    g = torch.Generator().manual_seed(seed)
    owners = torch.cat([torch.arange(n), torch.randint(n, (extra,), generator=g)])
    owners = owners[torch.randperm(len(owners), generator=g)]
    scores = torch.randint(levels, (n, len(owners)), generator=g).float() - 2
    relevant = torch.arange(n)[:, None] == owners[None]
    i2t, t2i = naive_ranks(scores, relevant), naive_ranks(scores.T, relevant.T)
    assert torch.equal(retrieval_ranks(scores, relevant), i2t)
    assert torch.equal(retrieval_ranks(scores, relevant, dim=0), t2i)
    result = cross_modal_recall(scores, torch.arange(n) * 7 + 3, owners * 7 + 3)
    assert list(result) == KEYS
    assert result == pytest.approx(naive_recall(i2t, t2i))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(2, 12), per_image=st.integers(1, 3))
def test_properties(seed, n, per_image):
    g = torch.Generator().manual_seed(seed)
    image_ids, owners = captions_of(n, per_image)
    scores = torch.randint(-20, 20, (n, n * per_image), generator=g).float()
    result = cross_modal_recall(scores, image_ids, owners)
    # Bounds and order of the levels.
    for side in ("i2t", "t2i"):
        r1, r5, r10 = (result[f"{side}_r{k}"] for k in (1, 5, 10))
        assert 0 <= r1 <= r5 <= r10 <= 100
        assert result[f"{side}_meanr"] >= 1
        assert result[f"{side}_medr"] >= 1
    # An increasing function and the order of the items change nothing.
    assert cross_modal_recall(scores * 3 + 5, image_ids, owners) == result
    rows, columns = torch.randperm(n, generator=g), torch.randperm(n * per_image, generator=g)
    shuffled = cross_modal_recall(scores[rows][:, columns], image_ids[rows], owners[columns])
    assert shuffled == pytest.approx(result)
    # Images and captions swap roles.
    swapped = cross_modal_recall(
        scores.T, owners, image_ids, relevance=owners[:, None] == image_ids[None]
    )
    assert swapped["i2t_r1"] == result["t2i_r1"]
    assert swapped["rsum"] == pytest.approx(result["rsum"])


def test_ties_count_against_the_query():
    n = 20
    image_ids, owners = captions_of(n, 5)
    result = cross_modal_recall(torch.zeros(n, 5 * n), image_ids, owners)
    assert result["rsum"] == 0
    assert result["i2t_medr"] == result["i2t_meanr"] == 5 * n - 5 + 1
    assert result["t2i_medr"] == result["t2i_meanr"] == n


def test_several_matches_tie_with_each_other_only():
    scores = torch.tensor([[0.5, 0.5, 0.1]])
    relevant = torch.tensor([[True, True, False]])
    assert retrieval_ranks(scores, relevant).tolist() == [0]


def test_scores_with_a_graph():
    ids, owners = captions_of(3, 2)
    scores = torch.randn(3, 6, requires_grad=True)
    assert cross_modal_recall(scores, ids, owners) == cross_modal_recall(
        scores.detach(), ids, owners
    )


def test_repeated_ids_match_each_other():
    """Rows of the same id share their captions."""
    scores = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.8, 0.5], [0.1, 0.7, 0.6]])
    ids = torch.tensor([4, 9, 9])
    expected = cross_modal_recall(scores, ids, ids, relevance=ids[:, None] == ids)
    assert cross_modal_recall(scores, ids, ids) == expected
    assert expected["rsum"] == 600


def test_relevance_replaces_ids():
    scores = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    ids = torch.arange(2)
    assert cross_modal_recall(scores, ids, ids)["i2t_r1"] == 50
    relevance = torch.tensor([[True, True], [True, True]])
    assert cross_modal_recall(scores, ids, ids, relevance=relevance)["rsum"] == 600


def test_unrelated_vectors_reach_chance():
    n = 400
    image, text = torch.randn(n, 64), torch.randn(n, 64)
    result = cross_modal_recall(image @ text.T, torch.arange(n), torch.arange(n))
    for side in ("i2t", "t2i"):
        assert result[f"{side}_r10"] < 6  # chance is 2.5
        assert n * 0.4 < result[f"{side}_meanr"] < n * 0.6


@pytest.mark.parametrize(
    ("ranks", "median"), [([0], 1), ([0, 1], 1), ([0, 3], 2), ([4, 0, 2], 3), ([1, 2, 3, 9], 3)]
)
def test_median_rank_is_floor_plus_one(ranks, median):
    ranks = torch.tensor(ranks)
    assert recall_from_ranks(ranks, ranks)["i2t_medr"] == median


def test_chunks_change_nothing(monkeypatch):
    scores = torch.randint(6, (13, 29)).float()
    relevant = torch.rand(13, 29) < 0.2
    relevant[torch.arange(29) % 13, torch.arange(29)] = True
    whole = [retrieval_ranks(scores, relevant, dim=dim) for dim in (0, 1)]
    columnwise = scores.T.contiguous().T
    for elements in (60, 7):
        monkeypatch.setattr(functional, "_TILE_ELEMENTS", elements)
        for dim in (0, 1):
            assert torch.equal(retrieval_ranks(scores, relevant, dim=dim), whole[dim])
            assert torch.equal(retrieval_ranks(columnwise, relevant, dim=dim), whole[dim])
    scores[11, 3] = columnwise[11, 3] = torch.nan
    for own in (scores, columnwise):
        for dim in (0, 1):
            with pytest.raises(ValueError, match=r"scores\[11, 3\] is nan"):
                retrieval_ranks(own, relevant, dim=dim)
    scores[11, 3] = 0.0
    relevant[12] = False
    with pytest.raises(ValueError, match="row 12"):
        retrieval_ranks(scores, relevant, dim=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision(dtype):
    """Every dtype ranks by its own values: rounding that makes a tie counts as a tie."""
    scores = torch.tensor([[1.0, 1.0 + 1e-4], [0.0, 2.0]], dtype=dtype)
    relevant = torch.eye(2, dtype=torch.bool)
    assert retrieval_ranks(scores, relevant).tolist() == [1, 0]
    assert retrieval_ranks(scores, relevant, dim=0).tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tile", [300, 1 << 20])
def test_half_precision_ranks_as_the_same_values_in_float32(dtype, tile, monkeypatch):
    """No tie but those of the values: the next value below the best match is another."""
    monkeypatch.setattr(functional, "_TILE_ELEMENTS", tile)
    scores = (torch.rand(60, 60) * 0.8 + 0.3 * torch.eye(60)).to(dtype)
    relevant = torch.eye(60, dtype=torch.bool)
    for dim in (0, 1):
        found = retrieval_ranks(scores, relevant, dim=dim)
        assert torch.equal(found, retrieval_ranks(scores.float(), relevant, dim=dim))
        assert torch.equal(found, naive_ranks(*(scores, relevant) if dim else (scores.T, relevant)))
        lists = [list_metrics(own, relevant, dim=dim) for own in (scores, scores.float())]
        assert torch.equal(lists[0].ndcg10, lists[1].ndcg10)


def test_five_folds():
    image_ids, owners = captions_of(20, 3)
    image_ids, owners = image_ids + 100, owners + 100
    owners = owners[torch.randperm(60)]
    scores = torch.randn(20, 60)
    folds = []
    for fold in range(5):
        rows = torch.arange(fold * 4, fold * 4 + 4)
        columns = [j for j in range(60) if owners[j] - 100 in rows]
        folds.append(cross_modal_recall(scores[rows][:, columns], image_ids[rows], owners[columns]))
    result = five_fold_recall(scores, image_ids, owners)
    assert list(result) == KEYS
    for key in KEYS:
        assert result[key] == pytest.approx(sum(fold[key] for fold in folds) / 5)
    assert five_fold_recall(scores, image_ids, owners, folds=1) == pytest.approx(
        cross_modal_recall(scores, image_ids, owners)
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_error_not_finite(value):
    scores = torch.zeros(3, 6)
    scores[2, 4] = value
    with pytest.raises(ValueError, match=r"scores\[2, 4\] is (nan|inf|-inf); expected a finite"):
        cross_modal_recall(scores, *captions_of(3, 2))


def test_error_names_the_argument():
    ids, owners = captions_of(3, 2)
    scores = torch.zeros(3, 6)
    relevant = ids[:, None] == owners[None]
    with pytest.raises(ValueError, match=r"scores has the shape \(3,\); expected \(n, m\)"):
        cross_modal_recall(torch.zeros(3), ids, owners)
    with pytest.raises(ValueError, match="n, m > 0"):
        retrieval_ranks(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"scores is a torch\.int64 tensor; expected a floating-point"
    ):
        cross_modal_recall(scores.long(), ids, owners)
    with pytest.raises(ValueError, match=r"^image_ids has the shape \(2,\); expected \(3,\)"):
        cross_modal_recall(scores, ids[:2], owners)
    with pytest.raises(ValueError, match=r"text_image_ids has the shape \(5,\); expected \(6,\)"):
        cross_modal_recall(scores, ids, owners[:5])
    with pytest.raises(
        ValueError, match=r"^image_ids is a torch\.float32 tensor; expected integers"
    ):
        cross_modal_recall(scores, ids.float(), owners)
    with pytest.raises(ValueError, match=r"relevance has the shape \(6, 3\); expected \(3, 6\)"):
        cross_modal_recall(scores, ids, owners, relevance=relevant.T)
    with pytest.raises(ValueError, match=r"relevant is a torch\.float32 tensor; expected a bool"):
        retrieval_ranks(scores, relevant.float())
    with pytest.raises(ValueError, match=r"dim is .*; expected 0 or 1"):
        retrieval_ranks(scores, relevant, dim=2)
    with pytest.raises(ValueError, match=r"i2t_ranks has the shape \(0,\)"):
        recall_from_ranks(ids[:0], ids)
    with pytest.raises(ValueError, match="t2i_ranks holds -1; expected 0 or more"):
        recall_from_ranks(ids, ids - 1)


def test_images_without_captions_are_searched_but_no_queries():
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.2, 0.8, 0.9], [0.1, 0.0, 0.3]])
    recall = cross_modal_recall(scores, torch.tensor([7, 8, 9]), torch.tensor([7, 7, 9]))
    assert recall["i2t_r1"] == recall["i2t_meanr"] * 100 == 100  # of two images, not of three
    ranks = [0, 1, 1]  # the second image stands before those of the last two captions
    assert recall["t2i_r1"] == pytest.approx(100 / 3)
    assert recall["t2i_meanr"] == pytest.approx(sum(ranks) / 3 + 1)


def test_error_query_without_match():
    with pytest.raises(ValueError, match=r"caption 1 \(image id 8\)"):
        cross_modal_recall(torch.zeros(1, 2), torch.tensor([7]), torch.tensor([7, 8]))


def test_error_folds():
    ids, owners = captions_of(6, 1)
    for folds, message in (
        (0, "folds is 0; expected 1 or more"),
        (4, "folds is 4; expected a divisor of the 6 images"),
    ):
        with pytest.raises(ValueError, match=message):
            five_fold_recall(torch.zeros(6, 6), ids, owners, folds=folds)
    with pytest.raises(ValueError, match="expected each once"):
        five_fold_recall(torch.zeros(6, 6), ids // 2, owners // 2, folds=2)
