"""Cross entropy of every true pair against the negatives of its row and of its column."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import InputError, check_positive
from itmkit.losses.scores import Costs, Reduction, Rows, ScoreLoss, both_directions

_LEAST = 0.01  # temperature, where it is learnt


def info_nce_loss(
    scores: Tensor,
    positives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of a score matrix; formula and arguments: :class:`InfoNCELoss`."""
    check_positive(temperature=temperature)
    costs = partial(info_nce_costs, temperature=temperature)
    return both_directions(costs, scores, positives, reduction)


def info_nce_costs(rows: Rows, temperature: float | Tensor) -> Costs:
    """What the true pairs of some rows cost against the negatives of their rows."""
    rows = rows._replace(scores=rows.scores / temperature)
    if rows.scores.numel() == 0:
        return Costs(rows.scores.sum(), 0)
    rest = rows.scores.masked_fill(rows.is_positive(), -torch.inf)
    has_negative = rest.amax(dim=1) > -torch.inf
    # Where there is no negative, a finite stand-in keeps the gradient from being NaN.
    against = rest.where(has_negative[:, None], 0).logsumexp(dim=1)
    if rows.positives is None:
        costs, counted = F.softplus(against - rows.diagonal()), has_negative
    else:
        row, column = rows.positives.nonzero(as_tuple=True)
        costs = F.softplus(against[row] - rows.scores[row, column])
        counted = has_negative[row]
    return Costs(costs.where(counted, 0).sum(), counted.sum())


class InfoNCELoss(ScoreLoss):
    r"""InfoNCE, the contrastive loss of CLIP, on a score matrix.

    .. math::

        L = \operatorname*{mean}_{(i,j) \in P} -\log \frac{e^{S_{ij}/\tau}}
              {e^{S_{ij}/\tau} + \sum_{k:\,(i,k) \notin P} e^{S_{ik}/\tau}} +
            \operatorname*{mean}_{(i,j) \in P} -\log \frac{e^{S_{ij}/\tau}}
              {e^{S_{ij}/\tau} + \sum_{k:\,(k,j) \notin P} e^{S_{kj}/\tau}}

    Other true pairs of a row or column are not negatives. A true pair without negatives is left out
    of its mean. Expects cosines, or other scores whose differences are of the size of τ.

    van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018; Radford
    et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021. CLIP
    takes half of this sum, and knows no further true pairs.

    Args:
        temperature: τ the scores are divided by, above 0; where it is learnt, at the start.
        learnt: whether τ is a parameter; its logarithm is learnt and τ kept at 0.01 or more, as in
            CLIP.
        reduction: ``"mean"`` over true pairs, of either direction, or their ``"sum"``.

    Shape:
        scores ``(n, m)``, positives bool ``(n, m)`` or None (the diagonal) → ``()``.

    Raises:
        InputError: for a number out of its range; in use, a wrong shape or dtype.

    Example:
        >>> InfoNCELoss(temperature=1.0)(torch.zeros(4, 4))  # twice log 4
        tensor(2.7726)
    """

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learnt: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        check_positive(temperature=temperature)
        if learnt and temperature < _LEAST:
            raise InputError(
                f"temperature is {temperature}; expected {_LEAST} or more where it is learnt"
            )
        start = torch.tensor(math.log(temperature))
        self.log_temperature = nn.Parameter(start) if learnt else None
        self._temperature = temperature

    @property
    def temperature(self) -> float | Tensor:
        """τ, a tensor with a gradient where it is learnt."""
        if self.log_temperature is None:
            return self._temperature
        own = self.log_temperature.detach()
        # Not by a clamp in the graph: its gradient is 0, and τ would stay at the least.
        return (self.log_temperature + (own.clamp(min=math.log(_LEAST)) - own)).exp()

    def observe(self, parts: Iterable[Rows]) -> None:
        """In training, bring a learnt τ that the optimizer took below its least back to it."""
        if self.training and self.log_temperature is not None:
            self.log_temperature.data.clamp_(min=math.log(_LEAST))

    def costs(self, rows: Rows) -> Costs:
        return info_nce_costs(rows, self.temperature)

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:.4g}, reduction={self.reduction!r}"
