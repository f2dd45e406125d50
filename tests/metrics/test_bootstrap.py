"""Intervals against resampling by hand, and against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from itmkit.checks import InputError
from itmkit.metrics import QueryRanks, bootstrap, bootstrap_recall
from itmkit.metrics.functional import recall_from_ranks


def drawn(ranks, monkeypatch, samples=30, seed=4):
    """How often each item was drawn in each resample, in the order of the draws."""
    found, draw = [], bootstrap._draw

    def record(*arguments):
        found.append(draw(*arguments))
        return found[-1]

    monkeypatch.setattr(bootstrap, "_draw", record)
    bounds = bootstrap_recall(ranks, samples=samples, seed=seed)
    monkeypatch.undo()
    return found, bounds


def percentiles(recalls):
    return {
        key: tuple(np.quantile([one[key] for one in recalls], [0.025, 0.975])) for key in recalls[0]
    }


def check(bounds, expected):
    assert list(bounds) == list(expected)
    for key, pair in expected.items():
        assert bounds[key] == pytest.approx(pair), key


@pytest.mark.parametrize("queries", [(7, 15), (1, 2)])
def test_naive_loop_reference(queries, monkeypatch):
    """Without ids each query is drawn on its own."""
    i2t, t2i = (torch.randint(14, (count,)) for count in queries)
    monkeypatch.setattr(bootstrap, "_CHUNK", 100)
    (images, captions), bounds = drawn(QueryRanks(i2t, t2i), monkeypatch)
    ordered = i2t.sort().values, t2i.sort().values  # the order in which they are drawn
    recalls = [
        recall_from_ranks(
            ordered[0].repeat_interleave(image.long()), ordered[1].repeat_interleave(text.long())
        )
        for image, text in zip(images, captions, strict=True)
    ]
    assert all((counts.sum(1) == counts.shape[1]).all() for counts in (images, captions))
    check(bounds, percentiles(recalls))


def test_naive_loop_reference_of_images_with_their_captions(monkeypatch):
    """An image is drawn with all of its captions, so that the number of captions varies."""
    ids, owners = torch.tensor([30, 10, 20]), torch.tensor([20, 10, 10, 30, 10, 20])
    ranks = QueryRanks(torch.randint(14, (3,)), torch.randint(14, (6,)), ids, owners)
    monkeypatch.setattr(bootstrap, "_CHUNK", 100)
    (counts,), bounds = drawn(ranks, monkeypatch)
    recalls = []
    for row in counts.tolist():
        images = [id for id, count in zip((10, 20, 30), row, strict=True) for _ in range(count)]
        i2t = [ranks.i2t[ids.tolist().index(id)] for id in images]
        t2i = [ranks.t2i[j] for id in images for j in range(6) if owners[j] == id]
        recalls.append(recall_from_ranks(torch.tensor(i2t), torch.tensor(t2i)))
    check(bounds, percentiles(recalls))


def test_naive_loop_reference_of_folds(monkeypatch):
    """The bounds of several folds are those of their mean."""
    folds = [QueryRanks(torch.randint(14, (5,)), torch.randint(14, (9,))) for _ in range(3)]
    monkeypatch.setattr(bootstrap, "_CHUNK", 100)
    found, bounds = drawn(folds, monkeypatch)
    recalls = []
    for sample in range(30):
        each = [
            recall_from_ranks(
                *(
                    side.sort().values.repeat_interleave(counts[sample].long())
                    for side, counts in zip((fold.i2t, fold.t2i), own, strict=True)
                )
            )
            for fold, own in zip(folds, (found[:2], found[2:4], found[4:]), strict=True)
        ]
        recalls.append({key: np.mean([one[key] for one in each]) for key in each[0]})
    check(bounds, percentiles(recalls))


def test_width_is_that_of_a_share():
    """Of 2,000 queries of which half are found, R@1 varies as a binomial does."""
    i2t, t2i = torch.arange(2000) % 2, torch.arange(4000) % 2
    low, high = bootstrap_recall(QueryRanks(i2t, t2i), samples=2000)["i2t_r1"]
    width = 2 * 1.96 * 100 * math.sqrt(0.25 / 2000)
    assert (low + high) / 2 == pytest.approx(50, abs=0.3)
    assert high - low == pytest.approx(width, rel=0.1)


def test_captions_found_together_widen_the_interval():
    """Five captions per image, all found or none: as many independent queries as images."""
    ids = torch.arange(1000)
    found = ids % 2
    single = bootstrap_recall(QueryRanks(found, found.repeat_interleave(5)))["t2i_r1"]
    together = bootstrap_recall(
        QueryRanks(found, found.repeat_interleave(5), ids, ids.repeat_interleave(5))
    )["t2i_r1"]
    ratio = (together[1] - together[0]) / (single[1] - single[0])
    assert ratio == pytest.approx(math.sqrt(5), rel=0.12)


def test_chunks_and_seeds(monkeypatch):
    ranks = QueryRanks(torch.randint(20, (50,)), torch.randint(20, (90,)))
    assert bootstrap_recall(ranks, seed=1) == bootstrap_recall(ranks, seed=1)
    assert bootstrap_recall(ranks, seed=1) != bootstrap_recall(ranks, seed=2)
    narrow, wide = (bootstrap_recall(ranks, confidence=c)["rsum"] for c in (0.5, 0.99))
    assert wide[0] < narrow[0] <= narrow[1] < wide[1]


def test_a_resample_without_captions_is_left_out():
    """An image whose matches are given by relevance alone may be drawn on its own."""
    ranks = QueryRanks(
        torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1, 2]), torch.tensor([1])
    )
    assert bootstrap_recall(ranks, samples=200)["t2i_r1"] == (100, 100)


def test_error():
    ranks = QueryRanks(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(
        InputError, match="ranks is a list; expected QueryRanks, or those of each f"
    ):
        bootstrap_recall([])
    with pytest.raises(InputError, match="ranks is None; expected QueryRanks"):
        bootstrap_recall(None)
    for seed, message in (
        (-1, "0 or more"),
        (1.5, "a whole number"),
        (2**64, r"less than 2\*\*64"),
    ):
        with pytest.raises(InputError, match=f"seed is {seed}; expected {message}"):
            bootstrap_recall(ranks, seed=seed)
    with pytest.raises(InputError, match="samples is 0; expected 1 or more"):
        bootstrap_recall(ranks, samples=0)
    with pytest.raises(InputError, match=r"confidence is 95; expected a number in \(0, 1\)"):
        bootstrap_recall(ranks, confidence=95)
    with pytest.raises(InputError, match=r"i2t has the shape \(0,\); expected at least one query"):
        QueryRanks(ranks.i2t[:0], ranks.t2i)
    with pytest.raises(InputError, match="t2i holds -1; expected 0 or more"):
        QueryRanks(ranks.i2t, ranks.t2i - 1)
    with pytest.raises(InputError, match="image_ids or text_image_ids is None; expected both or"):
        QueryRanks(ranks.i2t, ranks.t2i, torch.tensor([3]))
    with pytest.raises(InputError, match=r"text_image_ids has the shape \(2,\); expected \(1,\)"):
        QueryRanks(ranks.i2t, ranks.t2i, torch.tensor([3]), torch.tensor([3, 3]))
