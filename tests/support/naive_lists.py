"""nDCG, R-Precision and mAP@R of one query by loops, with ties as itmkit counts them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def places_of_matches(
    scores: Sequence[float],
    grades: Sequence[float],
    pairs: Sequence[float] | None = None,
    candidates: Sequence[int] = (),
    weight: float = 0.0,
) -> list[tuple[int, float]]:
    """Place, from 0, and grade of each match, tied items of lower grade first.

    Args:
        scores: of all items.
        grades: of all items, 0 for those that do not match.
        pairs: scores of the second stage, of all items.
        candidates: items that it puts in order.
        weight: of its score.
    """
    items = range(len(scores))
    left_out = max((scores[j] for j in items if j not in candidates), default=-math.inf)
    blended = {j: (1 - weight) * scores[j] + weight * pairs[j] for j in candidates} if pairs else {}
    found = []
    for p in items:
        if not grades[p]:
            continue
        secure = p in blended and scores[p] > left_out
        values = blended if secure else dict(enumerate(scores))
        ahead = sum(value >= values[p] for j, value in values.items() if not grades[j])
        found.append((ahead, not secure, -values[p], grades[p]))
    return [(one[0] + i, one[3]) for i, one in enumerate(sorted(found))]


def naive_lists(places: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """nDCG@10, R-Precision and mAP@R from the places, in order, and grades of all matches."""
    total = len(places)
    dcg = sum(grade / math.log2(place + 2) for place, grade in places if place < 10)
    best = sorted((grade for _, grade in places), reverse=True)[:10]
    ideal = sum(grade / math.log2(place + 2) for place, grade in enumerate(best))
    inside = [place for place, _ in places if place < total]
    precisions = [(i + 1) / (place + 1) for i, place in enumerate(inside)]
    return dcg / ideal, len(inside) / total, sum(precisions) / total


def columns(metrics) -> torch.Tensor:
    """The values of all queries, ``(q, 3)``."""
    return torch.stack(list(metrics.items().values()), 1)
