"""Binary cross entropy of every pair, true or not."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import check_number, check_positive
from itmkit.losses.scores import Costs, Reduction, Rows, ScoreLoss, both_directions


def siglip_loss(
    scores: Tensor,
    positives: Tensor | None = None,
    *,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    reduction: Reduction = "mean",
) -> Tensor:
    """The loss of a score matrix; formula and arguments: :class:`SigLIPLoss`."""
    check_positive(temperature=temperature)
    check_number(bias=bias)
    costs = partial(_costs, temperature=temperature, bias=bias)
    return both_directions(costs, scores, positives, reduction, directions=1)


def _costs(rows: Rows, temperature: float | Tensor, bias: float | Tensor) -> Costs:
    logits = rows.scores / temperature + bias
    total = F.softplus(torch.where(rows.is_positive(), -logits, logits)).sum()
    return Costs(total, len(logits))


class SigLIPLoss(ScoreLoss):
    r"""Sigmoid loss of SigLIP on a score matrix: every pair is a question of its own.

    .. math::

        L = \frac1n \sum_{i,j} \log \big(1 + e^{-z_{ij} (S_{ij} / \tau + b)}\big), \qquad
        z_{ij} = 1 \text{ for true pairs, } -1 \text{ for others}

    Expects cosines. Temperature and bias are meant to be learnt; the defaults are where the paper
    starts them.

    Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023.

    Args:
        temperature: τ the scores are divided by, above 0; where it is learnt, at the start.
        bias: b that is added to every logit; where it is learnt, at the start.
        learnt: whether τ (its logarithm) and b are parameters.
        reduction: ``"mean"``: the sum over all pairs, over the number n of images, as published;
            or the ``"sum"``.

    Shape:
        scores ``(n, m)``, positives bool ``(n, m)`` or None (the diagonal) → ``()``.

    Raises:
        InputError: for a number out of its range; in use, a wrong shape or dtype.

    Example:
        >>> SigLIPLoss(temperature=1.0, bias=0.0, learnt=False)(torch.zeros(4, 4))  # 4 log 2
        tensor(2.7726)
    """

    directions = 1

    def __init__(
        self,
        temperature: float = 0.1,
        bias: float = -10.0,
        *,
        learnt: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        check_positive(temperature=temperature)
        check_number(bias=bias)
        log_temperature, start = torch.tensor(math.log(temperature)), torch.tensor(float(bias))
        if learnt:
            self.log_temperature, self.bias = nn.Parameter(log_temperature), nn.Parameter(start)
        else:
            self.register_buffer("log_temperature", log_temperature, persistent=False)
            self.register_buffer("bias", start, persistent=False)

    def costs(self, rows: Rows) -> Costs:
        return _costs(rows, self.log_temperature.exp(), self.bias)

    def extra_repr(self) -> str:
        temperature, bias = self.log_temperature.exp().item(), self.bias.item()
        return f"temperature={temperature:.4g}, bias={bias:.4g}, reduction={self.reduction!r}"
