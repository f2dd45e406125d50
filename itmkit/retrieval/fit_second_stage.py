"""How many candidates the second stage puts in order, and how much it counts: found on queries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from itmkit.checks import InputError, check_count
from itmkit.metrics.query_ranks import QueryRanks, recall_from_ranks
from itmkit.retrieval.encode import Gallery
from itmkit.retrieval.model import ScoringModel
from itmkit.retrieval.rank import rank_both_stages
from itmkit.retrieval.score import SecondStage, second_stage

_LEAST_CANDIDATES = 4
_WEIGHTS = tuple(number / 20 for number in range(1, 21))


class FittedStage(NamedTuple):
    """A second stage that was fitted on one half of the queries and measured on the other."""

    top_k: int
    """Candidates of a query; 0 where the second stage did not help both halves."""
    weight: float
    """Share of the pair score, in [0, 1]."""
    first_stage: dict[str, float]
    """Recall of the other half by global scores."""
    both_stages: dict[str, float]
    """Recall of the other half with the fitted numbers, also where these are not kept."""
    ranks: QueryRanks
    """Of all queries, with the numbers that are kept."""


def fit_second_stage(
    matcher: ScoringModel,
    gallery: Gallery,
    *,
    top_k: int,
    relevance: Tensor | None = None,
    chunk_size: int = 256,
    shared: bool = False,
) -> FittedStage:
    """Find the number of candidates and the weight that give the largest rSum.

    Tried are 4, 8, 16, … candidates up to ``top_k``, and weights in steps of 0.05, on the queries
    of every other image and of its captions; all items are searched. Pairs are scored once. What
    was found is kept where it raises the rSum of the other queries too: the best of many numbers
    fits the noise of its own half.

    Args:
        matcher: the model, with a second stage.
        gallery: encoded images and captions.
        top_k: most candidates of a query, at least 1.
        relevance: see :func:`rank_queries`.
        chunk_size: see :func:`rank_queries`.
        shared: see :func:`rank_queries`.

    Raises:
        InputError: ``top_k`` below 1, or fewer than two images with captions.

    Example:
        Take the numbers that were found::

            fitted = fit_second_stage(matcher, gallery, top_k=32)
            evaluate(matcher, other, top_k=fitted.top_k, weight=fitted.weight)
    """
    check_count(top_k=top_k)
    ranked = rank_both_stages(matcher, gallery, relevance, top_k, chunk_size, shared=shared)
    queries, captions = ranked.matches.images.cpu(), ranked.matches.captions.cpu()
    ids, owners = gallery.image_ids[queries], gallery.text_image_ids[captions]
    if len(ids) < 2:
        raise InputError(f"gallery has {len(ids)} images with captions; expected at least 2")
    every_other = ids.sort().values[::2]
    halves = torch.isin(ids, every_other), torch.isin(owners, every_other)

    def recall(stage: SecondStage, *, fitted: bool) -> dict[str, float]:
        i2t, t2i = (ranks.ranks.cpu() for ranks in ranked.ranks(stage))
        own = [half == fitted for half in halves]
        return recall_from_ranks(i2t[queries][own[0]], t2i[captions][own[1]])

    none = second_stage(matcher, 0, 0.0)
    best, best_rsum = none, recall(none, fitted=True)["rsum"]
    for count in _counts(top_k):
        for weight in _WEIGHTS:
            stage = second_stage(matcher, count, weight)
            rsum = recall(stage, fitted=True)["rsum"]
            if rsum > best_rsum:
                best, best_rsum = stage, rsum
    alone, both = recall(none, fitted=False), recall(best, fitted=False)
    kept = best if both["rsum"] > alone["rsum"] else none
    return FittedStage(kept.top_k, kept.weight, alone, both, ranked.query_ranks(kept))


def _counts(most: int) -> list[int]:
    """Numbers of candidates to try: doubled until the most."""
    counts = [min(_LEAST_CANDIDATES, most)]
    while counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    return counts
