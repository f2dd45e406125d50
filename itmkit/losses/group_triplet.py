"""Triplet loss on groups of noisy views: the weakest pair of a group against the other groups."""

from __future__ import annotations

import torch
from torch import Tensor

from itmkit.checks import (
    InputError,
    check_count,
    check_floating,
    check_non_negative,
    integer_vector,
)
from itmkit.losses.triplet import HingeLoss, Negatives, check_negatives, hinge
from itmkit.precision import at_least_float32


def group_triplet_loss(
    scores: Tensor,
    image_ids: Tensor | None = None,
    *,
    margin: float = 0.2,
    group_size: int = 2,
    negatives: Negatives = "hardest",
) -> Tensor:
    r"""Bidirectional hinge on the scores of B groups of K image views and K caption views.

    .. math::

        L = \sum_{a} \operatorname*{agg}_{k:\,g(k) \ne g(a)}
            \Big[m + S_{ak} - \min_{p:\,g(p) = g(a)} S_{ap}\Big]_+
            \; + \; \text{the same on } S^\top

    with g the group of a view, agg the maximum (``"hardest"``) or the sum (``"all"``). An anchor is
    one view, its positive is the least similar of the K views of its own group on the other side,
    and no view of its group is a negative. The terms are summed, not averaged.

    The group loss of MATE (and of its base, ESA).

    Args:
        scores: similarities of all image views (rows) and caption views (columns); the views of a
            group are adjacent.
        image_ids: the image of each group; groups of one image are no negatives of each other.
            Integers as a tensor, a list or an array; None when all groups are of different images.
        margin: by how much a positive must beat its negatives; at least 0, in units of the scores.
        group_size: the number K of views in a group, at least 1.
        negatives: ``"hardest"`` or ``"all"`` negatives of an anchor.

    Shape:
        scores: ``(B·K, B·K)``; image_ids: ``(B,)``; result: ``()``.

    Returns:
        The loss, in float32 (float64 for float64 scores).

    Raises:
        InputError: for a wrong shape, a negative margin, a group size below 1, or unknown
            ``negatives``.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> scores = torch.rand(6, 6)  # three groups of two views
        >>> group_triplet_loss(scores)
        tensor(7.3016)
    """
    check_non_negative(margin=margin)
    check_negatives(negatives)
    check_count(group_size=group_size)
    check_floating("(B*K, B*K)", scores=scores)
    rows = scores.shape[0] if scores.dim() else 0
    if scores.dim() != 2 or rows != scores.shape[1] or rows % group_size:
        raise InputError(
            f"scores has the shape {tuple(scores.shape)}; expected (B*K, B*K) with "
            f"K = group_size = {group_size}"
        )
    if image_ids is None:
        image_ids = torch.arange(rows // group_size, device=scores.device)
    image_ids = integer_vector("image_ids", image_ids, rows // group_size, scores.device)
    scores = at_least_float32(scores)
    view_ids = image_ids.repeat_interleave(group_size, output_size=rows)
    is_negative = view_ids[:, None] != view_ids
    in_rows, in_columns = (
        hinge(
            _weakest_positive(side, group_size),
            side,
            is_negative,
            margin=margin,
            negatives=negatives,
        )
        for side in (scores, scores.T)
    )
    return in_rows + in_columns


def _weakest_positive(scores: Tensor, group_size: int) -> Tensor:
    """Smallest score of each row inside its own group."""
    groups = len(scores) // group_size
    blocks = scores.reshape(groups, group_size, groups, group_size)
    return blocks.diagonal(dim1=0, dim2=2).amin(dim=1).T.reshape(-1)


class GroupTripletLoss(HingeLoss):
    """Bidirectional hinge on groups of views; formula and arguments: :func:`group_triplet_loss`.

    Shape:
        scores ``(B·K, B·K)``, image_ids ``(B,)`` or None → ``()``.

    Example:
        >>> loss = GroupTripletLoss(margin=0.2, group_size=2)
        >>> loss(torch.eye(3).repeat_interleave(2, 0).repeat_interleave(2, 1))
        tensor(0.)
    """

    def __init__(
        self, margin: float = 0.2, group_size: int = 2, negatives: Negatives = "hardest"
    ) -> None:
        super().__init__(margin, negatives)
        check_count(group_size=group_size)
        self.group_size = group_size

    def forward(self, scores: Tensor, image_ids: Tensor | None = None) -> Tensor:
        """The loss of the scores of all views."""
        return group_triplet_loss(
            scores,
            image_ids,
            margin=self.margin,
            group_size=self.group_size,
            negatives=self.negatives,
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, group_size={self.group_size}"
