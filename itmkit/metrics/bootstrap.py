"""How far recall would vary with other queries: intervals by bootstrap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from itmkit.checks import InputError, check_count, check_seed
from itmkit.chunks import chunks
from itmkit.metrics.query_ranks import LEVELS, QueryRanks, as_folds

_CHUNK = 50  # resamples at a time


def bootstrap_recall(
    ranks: QueryRanks | Sequence[QueryRanks],
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Confidence intervals of recall: queries are resampled, the gallery is fixed.

    Each resample draws as many queries as there are, with replacement, and keeps their ranks. Where
    the ids are known, images are drawn, each with all of its captions: captions of one image tend
    to be found or missed together, so drawing them one by one would make the intervals too narrow.
    The intervals are percentiles of the resampled values. They show how recall would vary with
    other queries, not with another training run or another gallery.

    Args:
        ranks: of a gallery, as :func:`itmkit.retrieval.rank_queries` gives them, or of each fold;
            then the intervals are those of the mean over the folds.
        samples: number of resamples.
        seed: of the draws; equal seeds give equal intervals.
        confidence: share of the resamples that an interval holds, in (0, 1).

    Returns:
        Lower and upper bound of each value of
        :func:`itmkit.metrics.functional.recall_from_ranks`.

    Raises:
        InputError: no ranks, or a number out of its range.

    Example:
        >>> ranks = QueryRanks(torch.tensor([0, 0, 3, 12]), torch.tensor([0, 2, 0, 30]))
        >>> bootstrap_recall(ranks)["i2t_r5"]
        (25.0, 100.0)
    """
    folds = as_folds(ranks=ranks)
    check_count(samples=samples)
    check_seed(seed=seed)
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence!r}; expected a number in (0, 1)")
    generator = torch.Generator().manual_seed(seed)
    return _bounds(folds, _means(folds, samples, generator), confidence)


def paired_bootstrap(
    first: Sequence[QueryRanks],
    second: Sequence[QueryRanks],
    *,
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Confidence intervals of the second recall minus the first, on the same queries.

    Each resample draws the same queries for both; see :func:`bootstrap_recall` for the rest.

    Args:
        first: ranks of each fold.
        second: ranks of the same queries, in the same order, of another evaluation.
        samples: number of resamples.
        seed: of the draws.
        confidence: share of the resamples that an interval holds, in (0, 1).
    """
    check_seed(seed=seed)
    values = [_means(f, samples, torch.Generator().manual_seed(seed)) for f in (first, second)]
    return _bounds(first, values[1] - values[0], confidence)


def _means(folds: Sequence[QueryRanks], samples: int, generator: torch.Generator) -> Tensor:
    """The values of each resample, ``(samples, values)``, the means over the folds."""
    return torch.stack([_resampled(fold, samples, generator) for fold in folds]).mean(0)


def _bounds(
    folds: Sequence[QueryRanks], values: Tensor, confidence: float
) -> dict[str, tuple[float, float]]:
    tail = (1 - confidence) / 2
    bounds = torch.tensor([tail, 1 - tail], dtype=values.dtype)
    low, high = values.nanquantile(bounds, dim=0).tolist()
    return dict(zip(folds[0].recall(), zip(low, high, strict=True), strict=True))


def _resampled(ranks: QueryRanks, samples: int, generator: torch.Generator) -> Tensor:
    """The values of each resample, ``(samples, values)`` fp64, in the order of their keys."""
    orders = [side.sort() for side in (ranks.i2t.cpu(), ranks.t2i.cpu())]
    drawn: list[Tensor] = []  # of each side, what is drawn for each query, the best ranked first
    if ranks.image_ids is not None and ranks.text_image_ids is not None:
        ids = torch.cat([ranks.image_ids, ranks.text_image_ids]).cpu()
        images = ids.unique(return_inverse=True)[1].split([len(one.values) for one in orders])
        drawn = [image[one.indices] for image, one in zip(images, orders, strict=True)]
    found = []
    for part in chunks(samples, _CHUNK):
        size = part.stop - part.start
        if drawn:
            counts = _draw(size, 1 + max(int(image.max()) for image in drawn), generator)
            weights = [counts[:, image] for image in drawn]
        else:
            weights = [_draw(size, len(one.values), generator) for one in orders]
        sides = [_values(one.values, w) for one, w in zip(orders, weights, strict=True)]
        rsum = torch.cat([side[:, : len(LEVELS)] for side in sides], 1).sum(1, keepdim=True)
        found.append(torch.cat([*sides, rsum, *_list_means(ranks, orders, weights)], 1))
    return torch.cat(found)


def _list_means(
    ranks: QueryRanks, orders: Sequence[tuple[Tensor, Tensor]], weights: Sequence[Tensor]
) -> list[Tensor]:
    """Means of the list metrics of each resample, ``(samples, 1)`` each."""
    found = []
    for side, (_, order), drawn in zip(("i2t", "t2i"), orders, weights, strict=True):
        for name, values in ranks.list_values().items():
            if name.startswith(side):
                total = drawn.sum(1, dtype=torch.float64)
                found.append((100 * (drawn.double() @ values.cpu()[order]) / total)[:, None])
    return found


def _draw(samples: int, count: int, generator: torch.Generator) -> Tensor:
    """How often each of ``count`` items is drawn in each resample, ``(samples, count)`` int32."""
    drawn = torch.randint(count, (samples, count), generator=generator)
    counts = torch.zeros(samples, count, dtype=torch.int32)
    return counts.scatter_add_(1, drawn, torch.ones((), dtype=torch.int32).expand_as(drawn))


def _values(ranks: Tensor, weights: Tensor) -> Tensor:
    """Recalls, median and mean rank of each resample, NaN where no query was drawn.

    Args:
        ranks: ``(q,)`` in ascending order.
        weights: ``(samples, q)`` int32, how often each query was drawn.
    """
    seen = weights.cumsum(1, dtype=torch.int32)
    total = seen[:, -1:].contiguous()
    first = torch.searchsorted(ranks, torch.tensor(LEVELS))  # how many ranks are below each level
    recalls = 100 * F.pad(seen, (1, 0))[:, first].double() / total
    middle = torch.cat([(total - 1) // 2, total // 2], 1)  # of the drawn ranks in order
    places = torch.searchsorted(seen, middle, right=True).clamp(max=len(ranks) - 1)
    median = ranks[places].sum(1, keepdim=True) // 2 + 1
    mean = (weights.double() @ ranks.double())[:, None] / total + 1
    values = torch.cat([recalls, median.double(), mean], 1)
    return values.masked_fill(total == 0, torch.nan)
