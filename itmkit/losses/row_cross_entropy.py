"""Cross entropy of every true pair against the negatives of its row."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor

from itmkit.checks import check_positive
from itmkit.losses.info_nce import info_nce_costs
from itmkit.losses.scores import Costs, Reduction, Rows, ScoreLoss, both_directions


def row_cross_entropy_loss(
    scores: Tensor,
    positives: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of a score matrix; formula and arguments: :class:`RowCrossEntropyLoss`."""
    check_positive(temperature=temperature)
    costs = partial(info_nce_costs, temperature=temperature)
    return both_directions(costs, scores, positives, reduction, directions=1)


class RowCrossEntropyLoss(ScoreLoss):
    r"""Cross entropy of every true pair against the negatives of its row: a choice of one of k.

    .. math::

        L = \operatorname*{mean}_{(i,j) \in P} -\log \frac{e^{S_{ij}/\tau}}
              {e^{S_{ij}/\tau} + \sum_{k:\,(i,k) \notin P} e^{S_{ik}/\tau}}

    :class:`InfoNCELoss` of the rows alone, for rows whose columns have nothing in common: a true
    pair and the negatives that were picked for it, as the fusion branch of MATE has them. Unlike a
    hinge it does not stop at a margin, and unlike a loss of one negative it learns most from the
    hardest of several. Other true pairs of a row are not negatives; a true pair without negatives
    is left out of the mean. The expected scores are logits.

    Args:
        temperature: τ the scores are divided by, above 0.
        reduction: ``"mean"`` over true pairs, or their ``"sum"``.

    Shape:
        scores ``(a, k)``, positives bool ``(a, k)`` or None (the diagonal) → ``()``.

    Raises:
        InputError: for a number out of its range; in use, a wrong shape or dtype.

    Example:
        >>> import torch
        >>> is_true = torch.tensor([[True, False, False, False]])
        >>> RowCrossEntropyLoss()(torch.zeros(1, 4), is_true)  # log 4
        tensor(1.3863)
    """

    directions: ClassVar[int] = 1

    def __init__(self, temperature: float = 1.0, *, reduction: Reduction = "mean") -> None:
        super().__init__(reduction=reduction)
        check_positive(temperature=temperature)
        self.temperature = temperature

    def costs(self, rows: Rows) -> Costs:
        return info_nce_costs(rows, self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, reduction={self.reduction!r}"
