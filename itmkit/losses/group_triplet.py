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
from itmkit.losses.scores import Anchors, Costs, Reduction, Rows, check_groups
from itmkit.losses.triplet import HingeLoss, Negatives, hinge


def group_triplet_loss(
    scores: Tensor,
    positives: Tensor | None = None,
    image_ids: Tensor | None = None,
    *,
    margin: float = 0.2,
    group_size: int = 2,
    negatives: Negatives = "hardest",
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of the scores of all views; formula and arguments: :class:`GroupTripletLoss`."""
    loss = GroupTripletLoss(margin, group_size, negatives, reduction=reduction)
    result: Tensor = loss(scores, positives, image_ids)
    return result


class GroupTripletLoss(HingeLoss):
    r"""Bidirectional hinge on the scores of B groups of K image views and K caption views.

    .. math::

        L = \operatorname*{mean}_a \operatorname*{agg}_{k:\,(a,k) \notin P}
            \Big[m + S_{ak} - \min_{p:\,g(p) = g(a)} S_{ap}\Big]_+
            \; + \; \text{the same on } S^\top

    with g the group of a view, agg the maximum (``"hardest"``) or the sum (``"all"``). An anchor is
    one view, its positive is the least similar of the K views of its own group on the other side,
    and no view of its group is a negative. An anchor without negatives is left out of the mean.
    Expects cosines; other scores with a margin that is given in their units.

    The group loss of MATE (and of its base, ESA), which sum: ``reduction="sum"``.

    Args:
        margin: m, by how much a positive must beat its negatives; at least 0, in units of the
            scores.
        group_size: the number K of views in a group, at least 1; the views of a group are adjacent
            rows, and columns.
        negatives: ``"hardest"`` or ``"all"`` negatives of an anchor.
        reduction: ``"mean"`` over anchors, of either direction, or their ``"sum"``.

    Shape:
        scores ``(B·K, B·K)``, positives bool ``(B·K, B·K)`` or None (the views of each group) →
        ``()``. In place of positives, ``image_ids`` ``(B,)``: the image of each group, as a tensor,
        a list or an array; groups of one image are not negatives of each other.

    Raises:
        InputError: for a negative margin, a group size below 1 or unknown ``negatives``; in use, a
            wrong shape or dtype.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> GroupTripletLoss()(torch.rand(6, 6))  # three groups of two views
        tensor(1.2169)
    """

    def __init__(
        self,
        margin: float = 0.2,
        group_size: int = 2,
        negatives: Negatives = "hardest",
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(negatives, reduction=reduction)
        check_non_negative(margin=margin)
        check_count(group_size=group_size)
        self.margin = margin
        self.group_size = group_size

    def costs(self, rows: Rows) -> Costs:
        scores, positives, first = rows
        device, (count, columns), views = scores.device, scores.shape, self.group_size
        group = torch.arange(first, first + count, device=device) // views
        own = group[:, None] == torch.arange(columns, device=device) // views
        blocks = scores[:, first : first + count].reshape(2 * (count // views, views))
        weakest = blocks.diagonal(dim1=0, dim2=2).amin(dim=1).T.reshape(-1)
        is_negative = ~own if positives is None else ~(own | positives)
        anchors = Anchors(weakest, scores, is_negative)
        return hinge(anchors, margin=self.margin, negatives=self.negatives)

    def forward(
        self,
        scores: Tensor,
        positives: Tensor | None = None,
        image_ids: Tensor | None = None,
    ) -> Tensor:
        """The loss of the scores of all views."""
        check_floating("(B*K, B*K)", scores=scores)
        check_groups(tuple(scores.shape), self.group_size)
        rows = len(scores)
        if image_ids is not None:
            if positives is not None:
                raise InputError("positives and image_ids are both given; expected one of them")
            groups = rows // self.group_size
            image_ids = integer_vector("image_ids", image_ids, groups, scores.device)
            view_ids = image_ids.repeat_interleave(self.group_size, output_size=rows)
            positives = view_ids[:, None] == view_ids
        return super().forward(scores, positives)

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, group_size={self.group_size}, "
            f"negatives={self.negatives!r}, reduction={self.reduction!r}"
        )
