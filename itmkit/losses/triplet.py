"""Hinge of every true pair against the negatives of its row and of its column."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor

from itmkit.checks import check_choice, check_non_negative
from itmkit.losses.scores import Anchors, Costs, Reduction, Rows, ScoreLoss, both_directions

Negatives = Literal["hardest", "all"]


def triplet_loss(
    scores: Tensor,
    positives: Tensor | None = None,
    *,
    margin: float | Tensor = 0.2,
    negatives: Negatives = "hardest",
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of a score matrix; formula and arguments: :class:`TripletLoss`."""
    check_non_negative(margin=margin)
    check_choice("negatives", negatives, Negatives)
    costs = partial(triplet_costs, margin=margin, negatives=negatives)
    return both_directions(costs, scores, positives, reduction)


def triplet_costs(rows: Rows, *, margin: float | Tensor, negatives: Negatives) -> Costs:
    """Hinge of every true pair of some rows."""
    if negatives == "all":
        return hinge(rows.anchors(), margin=margin, negatives=negatives)
    if rows.scores.numel() == 0:
        return Costs(rows.scores.sum(), 0)
    # A mask serves here: the number of true pairs need not be read on the host.
    hardest = rows.hardest_negative()
    counted = hardest.isneginf().logical_not()
    positive = rows.diagonal()
    if rows.positives is not None:
        hardest, positive = hardest[:, None], rows.scores
        counted = rows.positives & counted[:, None]
    return Costs((margin + hardest - positive).relu().where(counted, 0).sum(), counted.sum())


def hinge(anchors: Anchors, *, margin: float | Tensor, negatives: Negatives) -> Costs:
    """Hinge against the hardest, or against all, of the negatives of each anchor."""
    positive, candidates, is_negative = anchors
    costs = (margin + candidates - positive[:, None]).relu().where(is_negative, 0)
    if negatives == "hardest" and costs.shape[1]:
        costs = costs.amax(dim=1)
    return Costs(costs.sum(), is_negative.any(dim=1).sum())


class HingeLoss(ScoreLoss):
    """Base of the hinge losses: which negatives count."""

    def __init__(self, negatives: Negatives, *, reduction: Reduction) -> None:
        super().__init__(reduction=reduction)
        self.negatives = negatives

    @property
    def negatives(self) -> Negatives:
        """Which negatives count, ``"hardest"`` or ``"all"``; may be set at any time."""
        return self._negatives

    @negatives.setter
    def negatives(self, value: Negatives) -> None:
        check_choice("negatives", value, Negatives)
        self._negatives: Negatives = value


class TripletLoss(HingeLoss):
    r"""Bidirectional hinge-based triplet ranking loss on a score matrix.

    .. math::

        L = \operatorname*{mean}_{(i,j) \in P}
            \operatorname*{agg}_{k:\,(i,k) \notin P} [m + S_{ik} - S_{ij}]_+ +
            \operatorname*{mean}_{(i,j) \in P}
            \operatorname*{agg}_{k:\,(k,j) \notin P} [m + S_{kj} - S_{ij}]_+

    with agg the maximum (``"hardest"``) or the sum (``"all"``). Each true pair is one anchor in its
    row and one in its column; other true pairs of the row or column are not negatives. A true pair
    without negatives is left out of its mean. Expects cosines; other scores with a margin that is
    given in their units. ``torch.compile`` traces it whole, except that older torch breaks the
    graph where given positives meet all negatives.

    Faghri et al., VSE++: Improving Visual-Semantic Embeddings with Hard Negatives, BMVC 2018, which
    sums: ``reduction="sum"``.

    Args:
        margin: m, by how much a true pair must beat its negatives; at least 0, in units of the
            scores.
        negatives: ``"hardest"`` or ``"all"`` negatives of the row and of the column.
        reduction: ``"mean"`` over true pairs, of either direction, or their ``"sum"``.

    Shape:
        scores ``(n, m)``, positives bool ``(n, m)`` or None (the diagonal) → ``()``.

    Raises:
        InputError: for a negative margin or unknown ``negatives``; in use, a wrong shape or dtype.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.9, 0.8], [0.1, 0.7]])
        >>> TripletLoss(margin=0.2)(scores)  # 0.1 in row 0, 0.3 in column 1; halves of each
        tensor(0.2000)
        >>> loss = TripletLoss(negatives="all", reduction="sum")
        >>> loss(scores)
        tensor(0.4000)
        >>> loss.negatives = "hardest"  # after a warm-up
    """

    def __init__(
        self,
        margin: float = 0.2,
        negatives: Negatives = "hardest",
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(negatives, reduction=reduction)
        check_non_negative(margin=margin)
        self.margin = margin

    def costs(self, rows: Rows) -> Costs:
        return triplet_costs(rows, margin=self.margin, negatives=self.negatives)

    def extra_repr(self) -> str:
        return f"margin={self.margin}, negatives={self.negatives!r}, reduction={self.reduction!r}"
