"""The ranks of all queries of a gallery, and the recall that they make."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from itmkit.checks import InputError, check_shape, integer_vector, type_of
from itmkit.metrics.judgements import Matches
from itmkit.metrics.list_metrics import ListMetrics
from itmkit.metrics.ranks import Ranks, warn_of_ties

LEVELS = (1, 5, 10)  # the K of recall at K


def recall_from_ranks(i2t_ranks: Tensor, t2i_ranks: Tensor) -> dict[str, float]:
    """Summarise 0-based ranks as recall, median and mean rank, and the sum of the recalls.

    Args:
        i2t_ranks: ``(n,)`` rank of the best caption of each image that has one.
        t2i_ranks: ``(m,)`` rank of each caption's best image.

    Returns:
        ``i2t_r1``, ``i2t_r5``, ``i2t_r10`` (per cent of queries with a match among the first 1, 5,
        10), ``i2t_medr`` (floor of the median rank, plus 1), ``i2t_meanr`` (mean rank plus 1), the
        same for ``t2i``, and ``rsum``, the six recalls added (0 to 600).

    Raises:
        InputError: ranks that are empty, negative or not one-dimensional.

    Example:
        >>> import torch
        >>> recall = recall_from_ranks(torch.tensor([0, 7]), torch.tensor([0, 0, 2, 30]))
        >>> recall["i2t_r1"], recall["t2i_r5"], recall["i2t_medr"], recall["rsum"]
        (50.0, 75.0, 4.0, 400.0)
    """
    result: dict[str, float] = {}
    rsum = 0.0
    for side, ranks in (("i2t", i2t_ranks), ("t2i", t2i_ranks)):
        ranks = _checked(f"{side}_ranks", ranks)
        count = len(ranks)
        for level in LEVELS:
            recall = 100.0 * int((ranks < level).sum()) / count
            result[f"{side}_r{level}"] = recall
            rsum += recall
        ordered = ranks.sort().values
        middle = (int(ordered[(count - 1) // 2]) + int(ordered[count // 2])) // 2
        result[f"{side}_medr"] = float(middle + 1)
        result[f"{side}_meanr"] = int(ranks.sum()) / count + 1.0
    return {**result, "rsum": rsum}


def chance_recall(matches: Iterable[int], items: int, level: int) -> float:
    """Per cent of queries with a match among the first K items of a random order.

    Args:
        matches: for every query how many of the items match it, 1 or more.
        items: how many there are.
        level: the K.

    Example:
        >>> chance_recall([1, 2], items=4, level=2)  # 1/2 and 5/6
        66.66666666666667
    """
    counts = Counter(matches)
    orders = math.comb(items, min(level, items))
    found = (n * (1 - math.comb(items - own, level) / orders) for own, n in counts.items())
    return 100 * sum(found) / counts.total()


@dataclass(frozen=True)
class BestItems:
    """The best items of every query in one direction, best first.

    Args:
        items: ``(q, k)`` int64, their ids.
        scores: ``(q, k)`` fp32. Where a second stage put the first ``reranked`` items in order,
            their scores are blended and cannot be compared with the others.
        matches: ``(q, k)`` bool, which of them are relevant.
        reranked: how many were put in order by a second stage; 0 without one.

    Raises:
        InputError: shapes that differ.

    Example:
        >>> import torch
        >>> best = BestItems(
        ...     torch.tensor([[7, 3, 9]]), torch.tensor([[0.9, 0.7, 0.5]]),
        ...     torch.tensor([[False, True, False]]),
        ... )
        >>> best.negatives(2).items.tolist()
        [[7, 9]]
    """

    items: Tensor
    scores: Tensor
    matches: Tensor
    reranked: int = 0

    def __post_init__(self) -> None:
        check_shape(tuple(self.items.shape), scores=self.scores, matches=self.matches)

    def first(self, k: int) -> BestItems:
        """The ``k`` best of each query; fewer where fewer are known."""
        return BestItems(self.items[:, :k], self.scores[:, :k], self.matches[:, :k], self.reranked)

    def negatives(self, k: int) -> BestItems:
        """The ``k`` best items of each query that do not match: its hardest negatives.

        Where a query has fewer negatives among its items, matches follow them: see ``matches``.
        """
        order = self.matches.long().sort(dim=1, stable=True).indices[:, :k]
        return BestItems(
            self.items.gather(1, order),
            self.scores.gather(1, order),
            self.matches.gather(1, order),
            self.reranked,
        )

    def of(self, queries: Tensor) -> BestItems:
        """The best items of some of the queries."""
        return BestItems(
            self.items[queries], self.scores[queries], self.matches[queries], self.reranked
        )


@dataclass(frozen=True)
class QueryRanks:
    """Rank of the best match of every query of a gallery, 0 being the first place.

    Args:
        i2t: ``(q,)`` int64, of the images that have a match; the others are not queries.
        t2i: ``(m,)`` int64, of the captions that are queries: all, unless judgements say otherwise.
        image_ids: ``(q,)`` int64, the id of each image of ``i2t``; None where unknown.
        text_image_ids: ``(m,)`` int64, the id of the image that each caption belongs to; None
            where unknown.
        text_ids: ``(m,)`` int64, the id of each caption of ``t2i``; None where unknown.
        i2t_match: ``(q,)`` score of the best match of each image; None where unknown.
        t2i_match: ``(m,)`` the same of each caption.
        i2t_best: the best captions of each image, where they were kept.
        t2i_best: the best images of each caption.
        pairs: ``(p, 2)`` int64, id of an image and of a caption that match, where items were kept.
        grades: ``(p,)`` how well these match, where there are grades.
        i2t_lists: quality of the whole list of each image, where it was computed.
        t2i_lists: the same of each caption.

    Raises:
        InputError: ranks that are empty, negative or not one-dimensional, ids that do not fit
            them, or ids of one side alone.

    Example:
        >>> import torch
        >>> QueryRanks(torch.tensor([0, 7]), torch.tensor([0, 0, 2, 30])).recall()["rsum"]
        400.0
    """

    i2t: Tensor
    t2i: Tensor
    image_ids: Tensor | None = None
    text_image_ids: Tensor | None = None
    text_ids: Tensor | None = None
    i2t_match: Tensor | None = None
    t2i_match: Tensor | None = None
    i2t_best: BestItems | None = None
    t2i_best: BestItems | None = None
    pairs: Tensor | None = None
    grades: Tensor | None = None
    i2t_lists: ListMetrics | None = None
    t2i_lists: ListMetrics | None = None

    def __post_init__(self) -> None:
        for name, ids_name in (("i2t", "image_ids"), ("t2i", "text_image_ids")):
            ranks, ids = _checked(name, getattr(self, name)), getattr(self, ids_name)
            object.__setattr__(self, name, ranks)
            if ids is not None:
                ids = integer_vector(ids_name, ids, len(ranks), ranks.device)
                object.__setattr__(self, ids_name, ids)
        if (self.image_ids is None) != (self.text_image_ids is None):
            raise InputError("image_ids or text_image_ids is None; expected both or none")

    def recall(self) -> dict[str, float]:
        """The dictionary of :func:`recall_from_ranks`, and the means of the list metrics.

        Where these were computed: ``i2t_ndcg10``, ``i2t_rprecision``, ``i2t_map_at_r`` and the same
        for ``t2i``, in per cent; see :class:`itmkit.metrics.ListMetrics`.
        """
        means = {name: 100 * values.mean().item() for name, values in self.list_values().items()}
        return recall_from_ranks(self.i2t, self.t2i) | means

    def list_values(self) -> dict[str, Tensor]:
        """The list metrics of every query in [0, 1], by names such as ``i2t_ndcg10``."""
        sides = {"i2t": self.i2t_lists, "t2i": self.t2i_lists}
        return {
            f"{side}_{name}": values
            for side, lists in sides.items()
            if lists is not None
            for name, values in lists.items().items()
        }


def query_ranks(
    i2t: Ranks, t2i: Ranks, matches: Matches, image_ids: Tensor, text_image_ids: Tensor
) -> QueryRanks:
    """The ranks of the images and of the captions that are queries.

    Args:
        i2t: of all images.
        t2i: of all captions.
        matches: what matches, and what is a query.
        image_ids: ``(n,)`` integers.
        text_image_ids: ``(m,)`` integers, the id of the image that each caption belongs to.

    Warns:
        UserWarning: if ties within the tolerance decide more than 1 % of the ranks.
    """
    images, captions = (part.to(i2t.ranks.device) for part in (matches.images, matches.captions))
    i2t, t2i = i2t[images], t2i[captions]
    warn_of_ties(i2t, t2i)
    return QueryRanks(
        i2t.ranks,
        t2i.ranks,
        image_ids.to(images.device)[images],
        text_image_ids.to(images.device)[captions],
        i2t_match=i2t.best,
        t2i_match=t2i.best,
    )


def as_folds(**ranks: QueryRanks | Sequence[QueryRanks]) -> list[QueryRanks]:
    """The ranks of each fold, from those of a gallery or of its folds.

    Raises:
        InputError: with the name of the argument, if these are no ranks.

    Example:
        >>> as_folds(ranks=[])
        Traceback (most recent call last):
        itmkit.checks.InputError: ranks is a list; expected QueryRanks, or those of each fold
    """
    ((name, given),) = ranks.items()
    folds = list(given) if isinstance(given, Sequence) else [given]
    if not folds or not all(isinstance(one, QueryRanks) for one in folds):
        raise InputError(f"{name} is {type_of(given)}; expected QueryRanks, or those of each fold")
    return folds


def recall_of_folds(folds: Sequence[QueryRanks]) -> dict[str, float]:
    """Recall of an evaluation: that of its only fold, or the mean of several and that of each.

    Returns:
        The dictionary of :func:`recall_from_ranks`. Of several folds its values are the means, and
        those of each fold follow under ``fold_1/i2t_r1`` and so on.
    """
    recalls = [fold.recall() for fold in folds]
    if len(recalls) == 1:
        return recalls[0]
    each = {
        f"fold_{number}/{key}": value
        for number, recall in enumerate(recalls, 1)
        for key, value in recall.items()
    }
    return mean_recall(recalls) | each


def mean_recall(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every value over the folds of an evaluation.

    Example:
        >>> mean_recall([{"rsum": 300.0}, {"rsum": 400.0}])
        {'rsum': 350.0}
    """
    return {key: sum(fold[key] for fold in folds) / len(folds) for key in folds[0]}


def _checked(name: str, ranks: Tensor) -> Tensor:
    ranks = integer_vector(name, ranks)
    if len(ranks) == 0:
        raise InputError(f"{name} has the shape (0,); expected at least one query")
    if ranks.min() < 0:
        raise InputError(f"{name} holds {ranks.min().item()}; expected 0 or more")
    return ranks
