"""Cross entropy over the hinge costs of the candidates of every row and column."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from itmkit.checks import check_non_negative, check_positive
from itmkit.losses.scores import Costs, Reduction, Rows, ScoreLoss, both_directions


def hinge_cross_entropy_loss(
    scores: Tensor,
    positives: Tensor | None = None,
    *,
    margin: float = 0.2,
    temperature: float = 0.05,
    weight: float = 1.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of a score matrix; formula and arguments: :class:`HingeCrossEntropyLoss`."""
    check_non_negative(margin=margin, weight=weight)
    check_positive(temperature=temperature)
    costs = partial(_costs, margin=margin, temperature=temperature, weight=weight)
    return both_directions(costs, scores, positives, reduction)


def _costs(rows: Rows, *, margin: float, temperature: float, weight: float) -> Costs:
    anchors = rows._replace(scores=rows.scores.sigmoid()).anchors()
    positive, candidates, is_negative = anchors
    logits = (margin + candidates - positive[:, None]).relu() / temperature
    logits = logits.where(is_negative, -torch.inf)
    costs = F.pad(logits, (1, 0)).logsumexp(dim=1)  # of the true pair, which costs nothing: 0
    return Costs(weight * costs.sum(), is_negative.any(dim=1).sum())


class HingeCrossEntropyLoss(ScoreLoss):
    r"""Cross entropy of hinge costs, image to text plus text to image.

    .. math::

        L = \operatorname*{mean}_{(i,j) \in P} \log \Big(1 + \sum_{k:\,(i,k) \notin P}
            e^{[m + p_{ik} - p_{ij}]_+ / \tau}\Big) +
            \operatorname*{mean}_{(i,j) \in P} \log \Big(1 + \sum_{k:\,(k,j) \notin P}
            e^{[m + p_{kj} - p_{ij}]_+ / \tau}\Big), \qquad p = \sigma(S)

    The costs are the logits of a cross entropy whose target is the true pair, of cost 0. Each
    direction is least, log n and not 0, when no pair costs anything; for a small temperature, τ
    times the loss is the triplet loss of the hardest negatives. A true pair without negatives costs
    nothing and is left out of its mean. Expects logits, such as those of TVRN: the sigmoid is taken
    here, so margin and temperature are in units of probabilities.

    TVRN's loss, which is half of this: ``weight=0.5``. Differs from the released code: that takes
    the softmax over rows in both directions.

    Args:
        margin: m, by how much the probability of a true pair must beat its negatives; at least 0.
        temperature: τ the costs are divided by, above 0.
        weight: factor on the sum of both directions, at least 0.
        reduction: ``"mean"`` over true pairs, of either direction, or their ``"sum"``.

    Shape:
        scores ``(n, m)``, positives bool ``(n, m)`` or None (the diagonal) → ``()``.

    Raises:
        InputError: for a number out of its range; in use, a wrong shape or dtype.

    Example:
        >>> loss = HingeCrossEntropyLoss(margin=0.2, temperature=0.05)
        >>> loss(100 * torch.eye(3))  # no costs: twice log 3
        tensor(2.1972)
    """

    def __init__(
        self,
        margin: float = 0.2,
        temperature: float = 0.05,
        *,
        weight: float = 1.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        check_non_negative(margin=margin, weight=weight)
        check_positive(temperature=temperature)
        self.margin = margin
        self.temperature = temperature
        self.weight = weight

    def costs(self, rows: Rows) -> Costs:
        return _costs(rows, margin=self.margin, temperature=self.temperature, weight=self.weight)

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, temperature={self.temperature}, weight={self.weight}, "
            f"reduction={self.reduction!r}"
        )
