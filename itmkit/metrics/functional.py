"""Ranks and recall of cross-modal retrieval, from a matrix of scores."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 1 << 22
_LEVELS = (1, 5, 10)


def retrieval_ranks(scores: Tensor, relevant: Tensor, *, dim: int = 1) -> Tensor:
    r"""Rank of the best match of every query, 0 being the first place.

    .. math::
        r_q = \#\{\, j \text{ not matching } q : S_{qj} \ge \max_{p \text{ matching } q} S_{qp} \,\}

    Ties count against the query: where all scores are equal, every non-matching item comes first.

    Args:
        scores: ``(n, m)`` floating point, higher is a better match.
        relevant: ``(n, m)`` bool, True where the pair matches.
        dim: the dimension that is searched. 1: rows are the queries; 0: columns are.

    Shape:
        ``(n, m)``, ``(n, m)`` → ``(n,)`` for ``dim=1``, ``(m,)`` for ``dim=0``.

    Returns:
        int64 ranks on the device of the scores.

    Raises:
        ValueError: a wrong shape, dtype or ``dim``, a score that is not finite, or a query without
            a match; the message says where.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1, 0.9], [0.2, 0.8, 0.1]])
        >>> relevant = torch.tensor([[True, False, False], [False, True, False]])
        >>> retrieval_ranks(scores, relevant).tolist()
        [1, 0]
    """
    if dim not in (0, 1):
        raise ValueError(f"dim must be 0 or 1, got {dim!r}")
    _check_matrix(scores, relevant, "relevant")
    queries = scores.shape[1 - dim]
    step = max(1, _CHUNK_ELEMENTS // max(1, scores.shape[dim]))
    ranks = torch.empty(queries, dtype=torch.int64, device=scores.device)
    for start in range(0, queries, step):
        size = min(step, queries - start)
        part = scores.narrow(1 - dim, start, size)
        match = relevant.narrow(1 - dim, start, size).to(scores.device)
        if not torch.stack(part.aminmax()).isfinite().all():  # NaN is passed on by both
            place = (~part.isfinite()).nonzero()[0]
            value = part[tuple(place)].item()
            place[1 - dim] += start
            row, column = place.tolist()
            raise ValueError(f"scores must be finite, got {value} at scores[{row}, {column}]")
        alone = ~match.any(dim)
        if alone.any():
            side = "column" if dim == 0 else "row"
            raise ValueError(f"{side} {start + int(alone.nonzero()[0])} of relevant has no match")
        best = part.masked_fill(~match, -torch.inf).amax(dim, keepdim=True)
        ranks[start : start + size] = ((part >= best) & ~match).sum(dim)
    return ranks


def recall_from_ranks(i2t_ranks: Tensor, t2i_ranks: Tensor) -> dict[str, float]:
    """Summarise 0-based ranks as recall, median and mean rank, and the sum of the recalls.

    Args:
        i2t_ranks: ``(n,)`` rank of each image's best caption.
        t2i_ranks: ``(m,)`` rank of each caption's best image.

    Returns:
        ``i2t_r1``, ``i2t_r5``, ``i2t_r10`` (per cent of queries with a match among the first 1, 5,
        10), ``i2t_medr`` (floor of the median rank, plus 1), ``i2t_meanr`` (mean rank plus 1), the
        same for ``t2i``, and ``rsum``, the six recalls added (0 to 600).

    Raises:
        ValueError: ranks that are empty, negative or not one-dimensional.

    Example:
        >>> recall = recall_from_ranks(torch.tensor([0, 7]), torch.tensor([0, 0, 2, 30]))
        >>> recall["i2t_r1"], recall["t2i_r5"], recall["i2t_medr"], recall["rsum"]
        (50.0, 75.0, 4.0, 400.0)
    """
    result: dict[str, float] = {}
    rsum = 0.0
    for side, ranks in (("i2t", i2t_ranks), ("t2i", t2i_ranks)):
        if ranks.ndim != 1 or len(ranks) == 0:
            raise ValueError(f"{side}_ranks must be (queries,), got shape {tuple(ranks.shape)}")
        if ranks.min() < 0:
            raise ValueError(f"{side}_ranks must be 0 or more, got {ranks.min().item()}")
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

    A query is found at ``k`` when fewer than ``k`` non-matching items score at least as high as its
    best match, so ties count against it.

    Args:
        scores: ``(n, m)`` floating point, images × captions, higher is a better match.
        image_ids: ``(n,)`` integers, one an image.
        text_image_ids: ``(m,)`` integers, the id of the image each caption belongs to.
        relevance: ``(n, m)`` bool that says which pairs match, in place of equal ids.

    Returns:
        The dictionary of :func:`recall_from_ranks`.

    Raises:
        ValueError: a wrong shape or dtype, a score that is not finite, or an image or caption
            without a match; the message says which.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8, 0.3, 0.2], [0.4, 0.1, 0.7, 0.3]])
        >>> ids = torch.tensor([10, 20])
        >>> recall = cross_modal_recall(scores, ids, torch.tensor([10, 10, 20, 20]))
        >>> recall["i2t_r1"], recall["t2i_r1"]
        (100.0, 100.0)
    """
    relevant = _relevant(scores, image_ids, text_image_ids, relevance)
    return recall_from_ranks(
        retrieval_ranks(scores, relevant, dim=1), retrieval_ranks(scores, relevant, dim=0)
    )


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
        ValueError: ``folds`` does not divide ``n``, an image comes twice, or what
            :func:`cross_modal_recall` raises.

    Example:
        >>> scores = torch.eye(4)
        >>> five_fold_recall(scores, torch.arange(4), torch.arange(4), folds=2)["rsum"]
        600.0
    """
    relevant = _relevant(scores, image_ids, text_image_ids, None)
    count = len(image_ids)
    if folds < 1 or count % folds:
        raise ValueError(f"folds must divide the {count} images, got {folds}")
    if len(image_ids.unique()) < count:
        raise ValueError("image_ids must hold each image once, or a fold could share one")
    size = count // folds
    results = []
    for start in range(0, count, size):
        rows = slice(start, start + size)
        columns = relevant[rows].any(0)
        part, match = scores[rows][:, columns], relevant[rows][:, columns]
        results.append(
            recall_from_ranks(
                retrieval_ranks(part, match, dim=1), retrieval_ranks(part, match, dim=0)
            )
        )
    return {key: sum(result[key] for result in results) / folds for key in results[0]}


def _check_matrix(scores: Tensor, relevant: Tensor, name: str) -> None:
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"scores must be (n, m) with n, m > 0, got {tuple(scores.shape)}")
    if not scores.is_floating_point():
        raise ValueError(f"scores must be floating point, got {scores.dtype}")
    if relevant.shape != scores.shape or relevant.dtype != torch.bool:
        raise ValueError(
            f"{name} must be bool of shape {tuple(scores.shape)}, "
            f"got {relevant.dtype} of shape {tuple(relevant.shape)}"
        )


def _relevant(
    scores: Tensor, image_ids: Tensor, text_image_ids: Tensor, relevance: Tensor | None
) -> Tensor:
    """Which pairs match, every image and caption having at least one."""
    if scores.ndim != 2:
        raise ValueError(f"scores must be (n, m), got {tuple(scores.shape)}")
    for name, ids, size in (
        ("image_ids", image_ids, scores.shape[0]),
        ("text_image_ids", text_image_ids, scores.shape[1]),
    ):
        if ids.shape != (size,):
            raise ValueError(f"{name} must be ({size},) as scores, got {tuple(ids.shape)}")
        if ids.is_floating_point():
            raise ValueError(f"{name} must be integers, got {ids.dtype}")
    if relevance is None:
        relevance = image_ids.to(scores.device)[:, None] == text_image_ids.to(scores.device)[None]
    _check_matrix(scores, relevance, "relevance")
    for side, ids, dim in (("image", image_ids, 1), ("caption", text_image_ids, 0)):
        alone = (~relevance.any(dim)).nonzero()
        if len(alone):
            row = int(alone[0])
            raise ValueError(f"{side} {row} (image id {int(ids[row])}) has no match in scores")
    return relevance
