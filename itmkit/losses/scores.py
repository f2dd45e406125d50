"""What all losses of a score matrix share: which pairs are true, and how terms become a number."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from itmkit.checks import InputError, check_bool, check_floating, check_shape
from itmkit.precision import at_least_float32

Reduction = Literal["mean", "sum"]


def check_scores(scores: Tensor, positives: Tensor | None, *, square: bool = False) -> None:
    """Raise unless these are scores and the true pairs among them.

    Args:
        scores: ``(n, m)``, of any floating dtype.
        positives: bool ``(n, m)``, or None for the diagonal of a square matrix.
        square: whether the scores must be ``(n, n)`` in any case.

    Raises:
        InputError: for a wrong type, shape, dtype or device.
    """
    check_floating("(n, m)", scores=scores)
    if scores.dim() != 2:
        raise InputError(f"scores has the shape {tuple(scores.shape)}; expected (n, m)")
    if positives is None or square:
        check_shape((len(scores), len(scores)), scores=scores)
    if positives is not None:
        how = "image_ids[:, None] == text_image_ids"
        check_bool(tuple(scores.shape), scores.device, how, positives=positives)


def score_matrix(scores: Tensor, positives: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores in at least float32, and which pairs are true.

    Args:
        scores: ``(n, m)`` of every image (row) and caption (column).
        positives: bool ``(n, m)``, True where image and caption match; None for the diagonal of a
            square matrix.

    Returns:
        Both, positives filled in.

    Raises:
        InputError: see :func:`check_scores`.

    Example:
        >>> score_matrix(torch.zeros(2, 2), None)[1].tolist()
        [[True, False], [False, True]]
    """
    check_scores(scores, positives)
    if positives is None:
        positives = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return at_least_float32(scores), positives


def reduce(terms: Tensor, reduction: Reduction, scores: Tensor) -> Tensor:
    """The mean or the sum of terms; zero, with a graph to the scores, of none.

    Args:
        terms: ``(a,)``.
        reduction: which.
        scores: what the terms were computed from.
    """
    if terms.numel() == 0:
        return at_least_float32(scores).sum() * 0
    return terms.mean() if reduction == "mean" else terms.sum()
