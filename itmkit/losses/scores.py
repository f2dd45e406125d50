"""What all losses of a score matrix share: which pairs are true, and how terms become a number."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from itmkit.checks import InputError, check_shape
from itmkit.precision import at_least_float32

Reduction = Literal["mean", "sum"]


def score_matrix(scores: Tensor, positives: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores in at least float32, and which pairs are true.

    Args:
        scores: ``(n, m)`` of every image (row) and caption (column).
        positives: bool ``(n, m)``, True where image and caption match; None for the diagonal of a
            square matrix.

    Returns:
        Both, positives filled in.

    Raises:
        InputError: for a wrong shape or dtype.

    Example:
        >>> score_matrix(torch.zeros(2, 2), None)[1].tolist()
        [[True, False], [False, True]]
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"scores is of {kind}; expected a floating-point tensor (n, m)")
    if scores.dim() != 2:
        raise InputError(f"scores has the shape {tuple(scores.shape)}; expected (n, m)")
    if positives is None:
        check_shape((len(scores), len(scores)), scores=scores)
        positives = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    elif not isinstance(positives, Tensor) or positives.dtype != torch.bool:
        kind = positives.dtype if isinstance(positives, Tensor) else type(positives).__name__
        raise InputError(
            f"positives is of {kind}; expected a bool tensor (n, m), such as "
            "image_ids[:, None] == text_image_ids"
        )
    check_shape(tuple(scores.shape), positives=positives)
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
