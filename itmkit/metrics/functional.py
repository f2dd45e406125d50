"""Ranks and recall of cross-modal retrieval, from a matrix of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from itmkit.checks import InputError, check_bool, check_floating, integer_vector
from itmkit.metrics.ranks import (
    Ranks,
    check_finite,
    has_match,
    matching_pairs,
    ranks_by_tile,
    warn_of_ties,
)

_TILE_ELEMENTS = 1 << 20
_LEVELS = (1, 5, 10)


def retrieval_ranks(scores: Tensor, relevant: Tensor, *, dim: int = 1) -> Tensor:
    r"""Rank of the best match of every query, 0 being the first place.

    .. math::
        r_q = \#\{\, j \text{ not matching } q : S_{qj} \ge b_q - 16\, \varepsilon \max(1, |b_q|)
            \,\}, \qquad b_q = \max_{p \text{ matching } q} S_{qp}

    with ε of the dtype of the scores (1.2e-7 for float32). Ties, equal but for rounding, count
    against the query: where all scores are equal, every non-matching item comes first. A warning
    tells where ties that are not exact decide more than 1 % of the ranks.

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
        >>> scores = torch.tensor([[0.9, 0.1, 0.9], [0.2, 0.8, 0.1]])
        >>> relevant = torch.tensor([[True, False, False], [False, True, False]])
        >>> retrieval_ranks(scores, relevant).tolist()
        [1, 0]
    """
    if dim not in (0, 1):
        raise InputError(f"dim must be 0 or 1, got {dim!r}")
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
        >>> recall = recall_from_ranks(torch.tensor([0, 7]), torch.tensor([0, 0, 2, 30]))
        >>> recall["i2t_r1"], recall["t2i_r5"], recall["i2t_medr"], recall["rsum"]
        (50.0, 75.0, 4.0, 400.0)
    """
    result: dict[str, float] = {}
    rsum = 0.0
    for side, ranks in (("i2t", i2t_ranks), ("t2i", t2i_ranks)):
        ranks = integer_vector(f"{side}_ranks", ranks)
        if len(ranks) == 0:
            raise InputError(f"{side}_ranks has the shape (0,); expected at least one query")
        if ranks.min() < 0:
            raise InputError(f"{side}_ranks holds {ranks.min().item()}; expected 0 or more")
        count = len(ranks)
        for level in _LEVELS:
            recall = 100.0 * int((ranks < level).sum()) / count
            result[f"{side}_r{level}"] = recall
            rsum += recall
        ordered = ranks.sort().values
        middle = (int(ordered[(count - 1) // 2]) + int(ordered[count // 2])) // 2
        result[f"{side}_medr"] = float(middle + 1)
        result[f"{side}_meanr"] = int(ranks.sum()) / count + 1.0
    return {**result, "rsum": rsum}


def cross_modal_recall(
    scores: Tensor,
    image_ids: Tensor,
    text_image_ids: Tensor,
    *,
    relevance: Tensor | None = None,
) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions, with any number of captions an image.

    A query is found at ``k`` when fewer than ``k`` non-matching items are as good as its best
    match. Ties count against it, as in :func:`retrieval_ranks`. An image without captions is
    searched but no query: it can stand before the image of a caption, and does not count in
    ``i2t``.

    Args:
        scores: ``(n, m)`` floating point, images × captions, higher is a better match.
        image_ids: ``(n,)`` integers, one an image; a tensor, a list or an array.
        text_image_ids: ``(m,)`` integers, the id of the image each caption belongs to.
        relevance: ``(n, m)`` bool that says which pairs match, in place of equal ids.

    Returns:
        The dictionary of :func:`recall_from_ranks`.

    Raises:
        InputError: a wrong shape or dtype, a score that is not finite, or a caption without a
            match; the message says which.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8, 0.3, 0.2], [0.4, 0.1, 0.7, 0.3]])
        >>> ids = torch.tensor([10, 20])
        >>> recall = cross_modal_recall(scores, ids, torch.tensor([10, 10, 20, 20]))
        >>> recall["i2t_r1"], recall["t2i_r1"]
        (100.0, 100.0)
    """
    _check_scores(scores)
    pairs = relevant_pairs(image_ids, text_image_ids, relevance, tuple(scores.shape))
    i2t, t2i = _matrix_ranks(scores, pairs)
    return recall_of_queries(i2t, t2i, pairs)


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
        >>> scores = torch.eye(4)
        >>> five_fold_recall(scores, torch.arange(4), torch.arange(4), folds=2)["rsum"]
        600.0
    """
    _check_scores(scores)
    relevant_pairs(image_ids, text_image_ids, None, tuple(scores.shape))
    count = len(scores)
    image_ids = integer_vector("image_ids", image_ids, count)
    if folds < 1 or count % folds:
        raise InputError(f"folds must divide the {count} images, got {folds}")
    if len(image_ids.unique()) < count:
        raise InputError("image_ids must hold each image once, or a fold could share one")
    size, owners = (
        count // folds,
        integer_vector("text_image_ids", text_image_ids, scores.shape[1], image_ids.device),
    )
    results = []
    for start in range(0, count, size):
        rows = slice(start, start + size)
        columns = torch.isin(owners, image_ids[rows])
        part = scores[rows][:, columns.to(scores.device)]
        results.append(cross_modal_recall(part, image_ids[rows], owners[columns]))
    return {key: sum(result[key] for result in results) / folds for key in results[0]}


def relevant_pairs(
    image_ids: Tensor, text_image_ids: Tensor, relevance: Tensor | None, shape: tuple[int, ...]
) -> Tensor:
    """All pairs of an image row and a caption row that match.

    Args:
        image_ids: ``(n,)`` integers.
        text_image_ids: ``(m,)`` integers, the id of the image each caption belongs to.
        relevance: ``(n, m)`` bool that says which pairs match, in place of equal ids.
        shape: ``(n, m)``.

    Returns:
        ``(p, 2)`` int64.

    Raises:
        InputError: a wrong shape or dtype, no captions, or a caption without a match.
    """
    sides = (("image_ids", image_ids), ("text_image_ids", text_image_ids))
    image_ids, text_image_ids = (
        integer_vector(name, ids, size) for (name, ids), size in zip(sides, shape, strict=True)
    )
    if relevance is None:
        pairs = matching_pairs(image_ids, text_image_ids)
    else:
        check_bool(shape, relevance=relevance)
        pairs = relevance.nonzero()
    if shape[1] == 0:
        raise InputError("there are no captions; expected at least one")
    matched = has_match(pairs[:, 1], shape[1])
    if not matched.all():
        row = int(matched.long().argmin())
        raise InputError(
            f"caption {row} (image id {int(text_image_ids[row])}) has no match in scores"
        )
    return pairs


def recall_of_queries(i2t: Ranks, t2i: Ranks, pairs: Tensor) -> dict[str, float]:
    """The dictionary of :func:`recall_from_ranks` of the images that have captions.

    Args:
        i2t: of all images.
        t2i: of the captions.
        pairs: ``(p, 2)`` int64, an image row and a caption row that match.

    Warns:
        UserWarning: if ties within the tolerance decide more than 1 % of the ranks.
    """
    queries = has_match(pairs[:, 0], len(i2t.ranks)).to(i2t.ranks.device)
    i2t = Ranks(i2t.ranks[queries], i2t.exact[queries])
    warn_of_ties(i2t, t2i)
    return recall_from_ranks(i2t.ranks, t2i.ranks)


def _matrix_ranks(scores: Tensor, pairs: Tensor) -> tuple[Ranks, Ranks]:
    """Ranks in both directions, read along the rows as they lie in memory."""
    turned = scores.stride(0) < scores.stride(1)
    if turned:
        scores, pairs = scores.T, pairs.flip(1)

    def part(rows: slice, columns: slice) -> Tensor:
        block = scores[rows, columns]
        if turned:
            check_finite(block.T, columns, rows)
        else:
            check_finite(block, rows, columns)
        return block

    n, m = scores.shape
    tile = max(1, _TILE_ELEMENTS // m), min(m, _TILE_ELEMENTS)
    i2t, t2i = ranks_by_tile(part, (n, m), pairs, tile)
    if turned:
        i2t, t2i = t2i, i2t
    return i2t, t2i


def _check_scores(scores: Tensor) -> None:
    check_floating("(n, m)", scores=scores)
    if scores.ndim != 2 or 0 in scores.shape:
        raise InputError(
            f"scores has the shape {tuple(scores.shape)}; expected (n, m) with n, m > 0"
        )
