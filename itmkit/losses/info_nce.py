"""Cross entropy of every true pair against the negatives of its row and of its column."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import check_choice, check_positive
from itmkit.losses.scores import Reduction, reduce, score_matrix
from itmkit.precision import autocast_off


def info_nce_loss(
    scores: Tensor,
    positives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.07,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of a score matrix; formula and arguments: :class:`InfoNCELoss`."""
    check_choice("reduction", reduction, Reduction)
    scores, positives = score_matrix(scores, positives)
    with autocast_off(scores):
        logits = scores / temperature
        rows, columns = _costs(logits, positives), _costs(logits.T, positives.T)
    return reduce(rows, reduction, scores) + reduce(columns, reduction, scores)


def _costs(logits: Tensor, positives: Tensor) -> Tensor:
    """Cost of every true pair against the negatives of its row; of those with a negative."""
    if logits.numel() == 0:
        return logits.flatten()
    rest = logits.masked_fill(positives, -torch.inf)
    counted = positives & (rest.amax(dim=1, keepdim=True) > -torch.inf)
    row, column = counted.nonzero(as_tuple=True)
    against = rest[row].logsumexp(dim=1)
    return F.softplus(against - logits[row, column])


class InfoNCELoss(nn.Module):
    r"""InfoNCE, the contrastive loss of CLIP, on a score matrix.

    .. math::

        L = \operatorname*{mean}_{(i,j) \in P} -\log \frac{e^{S_{ij}/\tau}}
              {e^{S_{ij}/\tau} + \sum_{k:\,(i,k) \notin P} e^{S_{ik}/\tau}} +
            \operatorname*{mean}_{(i,j) \in P} -\log \frac{e^{S_{ij}/\tau}}
              {e^{S_{ij}/\tau} + \sum_{k:\,(k,j) \notin P} e^{S_{kj}/\tau}}

    Other true pairs of a row or column are no negatives. A true pair without negatives is left out
    of its mean. Expects cosines, or other scores whose differences are of the size of τ.

    van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018; Radford
    et al., Learning Transferable Visual Models From Natural Language Supervision, ICML 2021. CLIP
    takes half of this sum, and knows no further true pairs.

    Args:
        temperature: τ the scores are divided by, above 0; where it is learnt, at the start.
        learnt: whether τ is a parameter; its logarithm is learnt and τ kept at 0.01 or more, as in
            CLIP.
        reduction: ``"mean"`` over true pairs, or their ``"sum"``.

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
        reduction: Literal["mean", "sum"] = "mean",
    ) -> None:
        super().__init__()
        check_positive(temperature=temperature)
        check_choice("reduction", reduction, Reduction)
        start = torch.tensor(math.log(temperature))
        self.log_temperature = nn.Parameter(start) if learnt else None
        self._temperature = temperature
        self.reduction = reduction

    @property
    def temperature(self) -> float | Tensor:
        """τ, a tensor with a gradient where it is learnt."""
        if self.log_temperature is None:
            return self._temperature
        return self.log_temperature.clamp(min=math.log(0.01)).exp()

    def forward(self, scores: Tensor, positives: Tensor | None = None) -> Tensor:
        """The loss of a score matrix."""
        return info_nce_loss(
            scores, positives, temperature=self.temperature, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        return f"temperature={self.temperature:.4g}, reduction={self.reduction!r}"
