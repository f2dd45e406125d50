"""Ranks and recall of cross-modal retrieval, from a matrix of scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from itmkit.checks import (
    InputError,
    check_bool,
    check_finite,
    check_floating,
    check_shape,
    integer_vector,
)
from itmkit.metrics.judgements import checked_grades, find_matches
from itmkit.metrics.list_metrics import (
    ListMetrics,
    items_ahead,
    metrics_of_lists,
    order_of_ties,
    wanted_items,
)
from itmkit.metrics.protocol import Protocol
from itmkit.metrics.query_ranks import mean_recall, query_ranks, recall_from_ranks
from itmkit.metrics.ranks import Ranks, has_match, ranks_by_tile, warn_of_ties
from itmkit.precision import at_least_float32

__all__ = [
    "cross_modal_recall",
    "five_fold_recall",
    "list_metrics",
    "recall_from_ranks",
    "retrieval_ranks",
]

_TILE_ELEMENTS = 1 << 20


def retrieval_ranks(scores: Tensor, relevant: Tensor, *, dim: int = 1) -> Tensor:
    r"""Rank of the best match of every query, 0 being the first place.

    .. math::
        r_q = \#\{\, j \text{ not matching } q : S_{qj} \ge b_q - 16\, \varepsilon \max(1, |b_q|)
            \,\}, \qquad b_q = \max_{p \text{ matching } q} S_{qp}

    with ε of the dtype of the scores: 1.2e-7 for float32, and for half precision, whose values are
    ranked as they are. Ties, equal but for rounding, count against the query: where all scores are
    equal, every non-matching item comes first. A warning is given if ties that are not exact decide
    more than 1 % of the ranks.

    Args:
        scores: ``(n, m)`` floating point, higher is a better match.
        relevant: ``(n, m)`` bool, True where the pair matches.
        dim: the dimension that is searched. 1: rows are the queries; 0: columns are.

    Shape:
        ``(n, m)``, ``(n, m)`` → ``(n,)`` for ``dim=1``, ``(m,)`` for ``dim=0``.

    Returns:
        int64 ranks on the device of the scores.

    Raises:
        InputError: a wrong shape, dtype or ``dim``, a score that is not finite, or a query without
            a match; the message says where.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.9, 0.1, 0.9], [0.2, 0.8, 0.1]])
        >>> relevant = torch.tensor([[True, False, False], [False, True, False]])
        >>> retrieval_ranks(scores, relevant).tolist()
        [1, 0]
    """
    if dim not in (0, 1):
        raise InputError(f"dim is {dim!r}; expected 0 or 1")
    _check_scores(scores)
    check_bool(tuple(scores.shape), relevant=relevant)
    pairs = relevant.nonzero()
    matched = has_match(pairs[:, 1 - dim], scores.shape[1 - dim])
    if not matched.all():
        side = "column" if dim == 0 else "row"
        raise InputError(f"{side} {int(matched.long().argmin())} of relevant has no match")
    i2t, t2i = _matrix_ranks(scores, pairs)
    warn_of_ties(i2t, t2i)
    return (t2i if dim == 0 else i2t).ranks


def cross_modal_recall(
    scores: Tensor,
    image_ids: Tensor,
    text_image_ids: Tensor,
    *,
    relevance: Tensor | None = None,
) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions, with any number of captions per image.

    A query is found at ``k`` when fewer than ``k`` non-matching items are as good as its best
    match. Ties count against it, as in :func:`retrieval_ranks`. An image without captions is
    searched but is not a query: it can rank before the image of a caption, and does not count in
    ``i2t``.

    Args:
        scores: ``(n, m)`` floating point, images × captions, higher is a better match.
        image_ids: ``(n,)`` integers, one per image; a tensor, a list or an array.
        text_image_ids: ``(m,)`` integers, the id of the image each caption belongs to.
        relevance: ``(n, m)`` bool that says which pairs match, in place of equal ids; or grades,
            of which all above 0 match.

    Returns:
        The dictionary of :func:`recall_from_ranks`.

    Raises:
        InputError: a wrong shape or dtype, a score that is not finite, or a caption without a
            match; the message says which.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.9, 0.8, 0.3, 0.2], [0.4, 0.1, 0.7, 0.3]])
        >>> ids = torch.tensor([10, 20])
        >>> recall = cross_modal_recall(scores, ids, torch.tensor([10, 10, 20, 20]))
        >>> recall["i2t_r1"], recall["t2i_r1"]
        (100.0, 100.0)
    """
    _check_scores(scores)
    n, m = scores.shape
    image_ids = integer_vector("image_ids", image_ids, n)
    text_image_ids = integer_vector("text_image_ids", text_image_ids, m)
    matches = find_matches(image_ids, text_image_ids, relevance)
    ranks = _matrix_ranks(scores, matches.pairs)
    return query_ranks(*ranks, matches, image_ids, text_image_ids).recall()


def five_fold_recall(
    scores: Tensor, image_ids: Tensor, text_image_ids: Tensor, *, folds: int = 5
) -> dict[str, float]:
    """Mean recall over contiguous folds of the images, each with its own captions only.

    With the 5,000 images of the COCO test split and ``folds=5`` this is "COCO 1K": five folds of
    1,000 images and 5,000 captions.

    Args:
        scores: ``(n, m)`` floating point, images × captions.
        image_ids: ``(n,)`` integers, each once, in the order of the split.
        text_image_ids: ``(m,)`` integers, the id of the image each caption belongs to.
        folds: number of folds, a divisor of ``n``.

    Returns:
        The dictionary of :func:`recall_from_ranks`, every value the mean over the folds.

    Raises:
        InputError: ``folds`` does not divide ``n``, an image comes twice, or what
            :func:`cross_modal_recall` raises.

    Example:
        >>> import torch
        >>> scores = torch.eye(4)
        >>> five_fold_recall(scores, torch.arange(4), torch.arange(4), folds=2)["rsum"]
        600.0
    """
    _check_scores(scores)
    n, m = scores.shape
    image_ids = integer_vector("image_ids", image_ids, n)
    owners = integer_vector("text_image_ids", text_image_ids, m, image_ids.device)
    find_matches(image_ids, owners)
    return mean_recall(
        [
            cross_modal_recall(
                scores[rows.to(scores.device)][:, columns.to(scores.device)],
                image_ids[rows],
                owners[columns],
            )
            for rows, columns in Protocol(folds=folds).split(image_ids, owners)
        ]
    )


def list_metrics(scores: Tensor, relevance: Tensor, *, dim: int = 1) -> ListMetrics:
    """nDCG@10, R-Precision and mAP@R of every query that has a match.

    Args:
        scores: ``(n, m)`` floating point, higher is a better match.
        relevance: ``(n, m)`` bool, or grades of 0 or more; 0 where a pair does not match.
        dim: the dimension that is searched. 1: rows are the queries; 0: columns are.

    Returns:
        See :class:`itmkit.metrics.ListMetrics`; queries without a match are left out.

    Raises:
        InputError: a wrong shape, type or ``dim``, a score or grade that is not finite, a negative
            grade, or no query with a match.

    Example:
        >>> import torch
        >>> found = list_metrics(torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[3.0, 0.0, 5.0]]))
        >>> found.r_precision.tolist(), found.map_at_r.tolist()
        ([0.5], [0.5])
        >>> found.ndcg10.round(decimals=3).tolist()
        [0.798]
    """
    if dim not in (0, 1):
        raise InputError(f"dim is {dim!r}; expected 0 or 1")
    _check_scores(scores)
    check_shape(tuple(scores.shape), relevance=relevance)
    if relevance.dtype == torch.bool:
        relevance = relevance.byte()
    grades = checked_grades("relevance", relevance)
    if dim == 0:
        scores, grades = scores.T, grades.T
    matched = (grades > 0).any(1)
    scores, grades = scores[matched.to(scores.device)].detach(), grades[matched]
    pairs = grades.nonzero()
    if len(pairs) == 0:
        raise InputError("relevance has no match; expected one or more")
    check_finite(scores, lambda *place: f"scores{list(place)} of the queries with a match")
    m = scores.shape[1]
    kept = min(m, wanted_items(int(pairs[:, 0].bincount().max())))
    best, items = scores.topk(min(m, kept + 1), dim=1)
    best = at_least_float32(best)
    left_out = best[:, kept] if m > kept else best.new_full((len(best),), -torch.inf)
    own = grades.to(items.device).gather(1, items[:, :kept])
    best = best[:, :kept]
    order = order_of_ties(best, own)
    return metrics_of_lists(
        own.gather(1, order),
        items_ahead(best, own, left_out).gather(1, order),
        pairs[:, 0].to(items.device),
        grades[pairs[:, 0], pairs[:, 1]].to(items.device),
    )


def _matrix_ranks(scores: Tensor, pairs: Tensor) -> tuple[Ranks, Ranks]:
    """Ranks in both directions, read along the rows as they lie in memory."""
    if scores.stride(0) < scores.stride(1):
        t2i, i2t = _ranks_by_row(scores.T, pairs.flip(1), lambda j, i: f"scores[{i}, {j}]")
    else:
        i2t, t2i = _ranks_by_row(scores, pairs, lambda i, j: f"scores[{i}, {j}]")
    return i2t, t2i


def _ranks_by_row(
    scores: Tensor, pairs: Tensor, name: Callable[[int, int], str]
) -> tuple[Ranks, Ranks]:
    """Ranks of the rows and of the columns; an error calls a score by its name."""

    def block(rows: slice, columns: slice) -> Tensor:
        part = scores[rows, columns]
        check_finite(part, lambda i, j: name(rows.start + i, columns.start + j))
        return part

    n, m = scores.shape
    return ranks_by_tile(
        lambda columns, parts: (block(rows, columns) for rows in parts),
        (n, m),
        pairs,
        (max(1, _TILE_ELEMENTS // m), min(m, _TILE_ELEMENTS)),
    )


def _check_scores(scores: Tensor) -> None:
    check_floating("(n, m)", scores=scores)
    if scores.ndim != 2 or 0 in scores.shape:
        raise InputError(
            f"scores has the shape {tuple(scores.shape)}; expected (n, m) with n, m > 0"
        )
