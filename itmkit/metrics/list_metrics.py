"""nDCG, R-Precision and mAP@R: of lists in which several items match, some more than others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from itmkit.checks import check_shape
from itmkit.metrics.ranks import tie_groups, tied_from

DEPTH = 10  # the k of nDCG@k
_BEYOND = 1 << 40  # a place behind all items


@dataclass(frozen=True)
class ListMetrics:
    r"""How good the list of each query is, where several items match it.

    With :math:`R` the number of items that match a query, :math:`p_i` the place of the
    :math:`i`-th of them in its list, from 1, and :math:`g_i` its grade:

    .. math::
        \mathrm{nDCG@10} = \frac{\sum_{p_i \le 10} g_i / \log_2(p_i + 1)}
            {\text{the same of the best order}}, \quad
        \mathrm{RP} = \frac{\#\{p_i \le R\}}{R}, \quad
        \mathrm{mAP@R} = \frac{1}{R} \sum_{p_i \le R} \frac{i}{p_i}

    Without grades each match counts as 1. The gain of nDCG is the grade itself, as in trec_eval;
    others use :math:`2^g - 1`. R-Precision and mAP@R are those of ECCV Caption. Ties count against
    the query, within the tolerance of :func:`itmkit.metrics.functional.retrieval_ranks`: of tied
    items, those of lower grade come first.

    Args:
        ndcg10: ``(q,)`` fp64 in [0, 1].
        r_precision: ``(q,)`` likewise.
        map_at_r: ``(q,)`` likewise.

    Raises:
        InputError: shapes that differ.
    """

    ndcg10: Tensor
    r_precision: Tensor
    map_at_r: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.ndcg10.shape)
        check_shape(shape, r_precision=self.r_precision, map_at_r=self.map_at_r)

    def items(self) -> dict[str, Tensor]:
        """The values of all queries by the name that their mean has."""
        return {
            "ndcg10": self.ndcg10,
            "rprecision": self.r_precision,
            "map_at_r": self.map_at_r,
        }

    def of(self, queries: Tensor) -> ListMetrics:
        """Those of some of the queries."""
        return ListMetrics(*(values[queries] for values in self.items().values()))


def items_ahead(scores: Tensor, grades: Tensor, left_out: Tensor) -> Tensor:
    """How many items that do not match are in front of each item of a list, or tied with it.

    Args:
        scores: ``(q, k)``, the largest of each row first.
        grades: ``(q, k)`` fp64, 0 for items that do not match.
        left_out: ``(q,)`` the best score of the items that are not in the list. What is tied with
            it is behind all of them.

    Returns:
        ``(q, k)`` int64.
    """
    least = tied_from(scores)
    ascending = scores.flip(1).contiguous()
    as_good = scores.shape[1] - torch.searchsorted(ascending, least.contiguous())
    wrong = F.pad((grades == 0).cumsum(1), (1, 0))
    return wrong.gather(1, as_good).masked_fill(least <= left_out[:, None], _BEYOND)


def order_of_ties(scores: Tensor, grades: Tensor) -> Tensor:
    """The columns ``(q, k)`` of sorted items, of tied ones those of lower grade first.

    Example:
        >>> order_of_ties(torch.tensor([[2.0, 1.0, 1.0]]), torch.tensor([[0.0, 5.0, 3.0]])).tolist()
        [[0, 2, 1]]
    """
    ties = tie_groups(scores)
    group = F.pad((ties[:, 1:] != ties[:, :-1]).cumsum(1), (1, 0))
    order = grades.argsort(dim=1, stable=True)
    return order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))


def metrics_of_lists(listed: Tensor, ahead: Tensor, queries: Tensor, grades: Tensor) -> ListMetrics:
    """The metrics of all queries; those of queries without a match mean nothing.

    Args:
        listed: ``(q, k)`` grades of the first items of each query, best item first, 0 for those
            that do not match; at least as many items as :func:`wanted_items` says.
        ahead: ``(q, k)`` as :func:`items_ahead` gives it.
        queries: ``(p,)`` the query of each pair that matches.
        grades: ``(p,)`` fp64, how well.
    """
    count = len(listed)
    total = queries.bincount(minlength=count)
    ahead, order = ahead.masked_fill(listed == 0, _BEYOND).sort(dim=1, stable=True)
    found = torch.arange(ahead.shape[1], device=ahead.device)  # matches in front of each
    place = ahead + found
    gains = listed.gather(1, order) * _discount(place)
    inside = place < total[:, None]
    matches = total.clamp(min=1)
    precision = (found + 1).double() / (place + 1)
    return ListMetrics(
        gains.sum(1) / _ideal(queries, grades, count),
        inside.sum(1) / matches.double(),
        precision.where(inside, 0.0).sum(1) / matches,
    )


def wanted_items(matches: int) -> int:
    """How many items the list of a query must hold, where it has at most so many matches."""
    return max(DEPTH, matches) + matches


def _discount(place: Tensor) -> Tensor:
    """What a match at a place, from 0, counts in DCG@10."""
    return (1 / (place.double() + 2).log2()).where(place < DEPTH, 0.0)


def _ideal(queries: Tensor, grades: Tensor, count: int) -> Tensor:
    """DCG@10 of the best order, ``(count,)``; 1 for queries without a match."""
    order = grades.argsort(descending=True, stable=True)
    order = order[queries[order].argsort(stable=True)]
    total = queries.bincount(minlength=count)
    place = torch.arange(len(order), device=order.device)
    place = place - (total.cumsum(0) - total)[queries[order]]
    ideal = grades.new_zeros(count)
    ideal.index_add_(0, queries[order], grades[order] * _discount(place))
    return ideal.where(total > 0, 1.0)
