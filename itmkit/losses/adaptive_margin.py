"""Triplet loss whose margin follows the scores of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, check_choice, check_non_negative, check_positive
from itmkit.losses.scores import check_scores
from itmkit.losses.triplet import Negatives, check_negatives, triplet_loss

NegativeStatistic = Literal["released", "mean"]

_MARGIN_ABOVE_ONE = 0.2  # what the method puts in place of a crossing above 1


def adaptive_margin(
    scores: Tensor,
    margin: float | Tensor,
    *,
    beta: float = 0.3,
    momentum: float = 0.9,
    min_rows: int = 46,
    positives: Tensor | None = None,
    negative_statistic: NegativeStatistic = "released",
) -> Tensor:
    r"""The next margin: a step towards where the densities of positives and negatives cross.

    Counted are the rows with a negative whose positive, on the diagonal, is no smaller than any of
    them. One Gaussian is fitted to their positives :math:`S_{ii}` and one to their negative
    statistics :math:`s_i`, with unbiased standard deviations. The target solves

    .. math::

        \beta\, \mathcal{N}(m^*; \mu_p, \sigma_p) = \mathcal{N}(m^*; \mu_n, \sigma_n), \qquad
        m \leftarrow (1 - \alpha)\, m^* + \alpha\, m

    with α the momentum. Of two solutions it is the upper one if :math:`\sigma_p > \sigma_n`, else
    the lower one; of equal deviations there is one. A target above 1 is replaced by 0.2. The margin
    is kept if the target is negative or does not exist (no real root, a deviation of zero, a score
    that is not finite), or if there are too few rows.

    DAIM's margin optimisation. Differs from the released code: constants added against a division
    by zero are replaced by the exact limits.

    Args:
        scores: similarity of every image (row) and caption (column); no gradient flows through.
        margin: the present margin, at least 0.
        beta: weight β of the density of the positives, above 0; below 1 it raises the crossing
            between the two means.
        momentum: weight of the present margin, in [0, 1].
        min_rows: from how many counted rows on the margin moves, at least 2.
        positives: bool, True on further true pairs; they are no negatives. None if there are none.
        negative_statistic: of row i with k negatives, ``"released"``, as DAIM was trained:
            :math:`s_i = m + \frac{1}{k(k+1)} \sum_j (S_{ij} - S_{ii})`, which divides twice and so
            stays near the margin; or ``"mean"``, their mean :math:`\frac1k \sum_j S_{ij}`.

    Shape:
        scores, positives: ``(n, n)``; margin: ``()``; result: ``()``.

    Returns:
        The next margin, in float64; it is never read on the host.

    Raises:
        InputError: for a wrong shape or dtype, a number out of its range, or an unknown statistic.

    Example:
        >>> scores = torch.tensor([[0.8, 0.1, 0.2], [0.3, 0.6, 0.1], [0.3, 0.2, 0.9]])
        >>> adaptive_margin(scores, 0.2, min_rows=2, negative_statistic="mean")
        tensor(0.2169, dtype=torch.float64)
    """
    _check_numbers(beta, momentum, min_rows, negative_statistic)
    check_scores(scores, positives, square=True)
    present = torch.as_tensor(margin, dtype=torch.float64, device=scores.device).detach()
    if len(scores) < min_rows:
        return present
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    negative = ~diagonal if positives is None else ~(diagonal | positives)
    scores = scores.detach().double().where(negative | diagonal, 0)
    # The crossing scales with the scores: below 1, no square of them overflows.
    scale = scores.abs().amax().clamp(min=1)
    scores, shift = scores / scale, present / scale
    positive, count = scores.diagonal(), negative.sum(dim=1)
    hardest = scores.masked_fill(~negative, -torch.inf).amax(dim=1)
    counted = (count > 0) & (positive >= hardest)
    if negative_statistic == "released":
        differences = (scores - positive[:, None]).where(negative, 0).sum(dim=1)
        statistic = shift + differences / (count * (count + 1)).clamp(min=1)
    else:
        statistic = scores.where(negative, 0).sum(dim=1) / count.clamp(min=1)
    target = scale * _crossing(*_gaussian(positive, counted), *_gaussian(statistic, counted), beta)
    moves = (counted.sum() >= min_rows) & (target >= 0)
    target = target.where(target <= 1, _MARGIN_ABOVE_ONE)
    return ((1 - momentum) * target + momentum * present).where(moves, present)


def _gaussian(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of the counted values."""
    count = counted.sum()
    mean = values.where(counted, 0).sum() / count.clamp(min=1)
    squares = (values - mean).square().where(counted, 0).sum()
    return mean, (squares / (count - 1).clamp(min=1)).sqrt()


def _crossing(
    positive_mean: Tensor,
    positive_deviation: Tensor,
    negative_mean: Tensor,
    negative_deviation: Tensor,
    beta: float,
) -> Tensor:
    """Where the two densities cross; NaN where they do not.

    It is the root of the paper's quadratic with the mean of the negatives as origin, where the
    discriminant is ``(2 · positive_deviation · negative_deviation)² · radicand``.
    """
    gap = positive_mean - negative_mean
    positive_variance, negative_variance = positive_deviation**2, negative_deviation**2
    difference = positive_variance - negative_variance
    log_ratio = math.log(beta) + negative_deviation.log() - positive_deviation.log()
    radicand = gap**2 - 2 * difference * log_ratio
    root = positive_deviation * radicand.sqrt() - gap * negative_deviation
    quadratic = negative_deviation * root / difference
    linear = (gap**2 - 2 * positive_variance * log_ratio) / (2 * gap)
    equal = difference.abs() <= 1e-8 * (positive_variance + negative_variance)
    # What is below 1e-12 is rounding: scores are at most 1 here.
    exists = torch.where(equal, gap.abs() > 1e-12, radicand > 0)
    exists = exists & (torch.minimum(positive_deviation, negative_deviation) > 1e-12)
    return (negative_mean + torch.where(equal, linear, quadratic)).where(exists, torch.nan)


def _check_numbers(beta: float, momentum: float, min_rows: int, negative_statistic: str) -> None:
    check_positive(beta=beta)
    if not 0 <= momentum <= 1:
        raise InputError(f"momentum: expected a number in [0, 1], got {momentum!r}")
    if min_rows < 2:
        raise InputError(f"min_rows: expected at least 2, got {min_rows!r}")
    check_choice("negative_statistic", negative_statistic, NegativeStatistic)


class AdaptiveMarginTripletLoss(nn.Module):
    """Triplet loss of DAIM, whose margin follows the scores.

    In training the margin first takes the step of :func:`adaptive_margin`, then the loss is
    :func:`~itmkit.losses.functional.triplet_loss` with it; in eval mode the margin stays. No
    gradient flows through the margin. It is a buffer ``margin``, float64 whatever the module is
    cast to, and saved with the module. The loss is a plain function of the score matrix: gather
    the scores first, and every rank has the same margin.

    Args:
        margin: what the margin starts from, at least 0.
        beta, momentum, min_rows, negative_statistic: of :func:`adaptive_margin`.
        negatives: ``"hardest"`` or ``"all"`` negatives count in the loss.

    Shape:
        scores ``(n, n)``, positives bool ``(n, n)`` or None → ``()``. The diagonal holds true
        pairs; ``positives`` marks further ones, which are anchors of the loss too and no negatives.

    Example:
        >>> scores = torch.tensor([[0.8, 0.1, 0.2], [0.3, 0.6, 0.1], [0.3, 0.2, 0.9]])
        >>> loss = AdaptiveMarginTripletLoss(min_rows=2, negative_statistic="mean")
        >>> loss(scores), loss.margin
        (tensor(0.), tensor(0.2169, dtype=torch.float64))
    """

    margin: Tensor

    #: buffers of a run, not of its weights
    training_state = ("margin",)

    def __init__(
        self,
        margin: float = 0.2,
        beta: float = 0.3,
        momentum: float = 0.9,
        min_rows: int = 46,
        negatives: Negatives = "hardest",
        negative_statistic: NegativeStatistic = "released",
    ) -> None:
        super().__init__()
        check_non_negative(margin=margin)
        _check_numbers(beta, momentum, min_rows, negative_statistic)
        self.register_buffer("margin", torch.tensor(margin, dtype=torch.float64))
        self.beta = beta
        self.momentum = momentum
        self.min_rows = min_rows
        self.negatives = negatives
        self.negative_statistic: NegativeStatistic = negative_statistic

    @property
    def negatives(self) -> Negatives:
        """Which negatives count, ``"hardest"`` or ``"all"``; may be set at any time."""
        return self._negatives

    @negatives.setter
    def negatives(self, value: Negatives) -> None:
        check_negatives(value)
        self._negatives: Negatives = value

    def forward(self, scores: Tensor, positives: Tensor | None = None) -> Tensor:
        """The loss of a score matrix; in training the margin moves first."""
        check_scores(scores, positives, square=True)
        margin = self.margin
        if self.training:
            margin = adaptive_margin(
                scores,
                margin,
                beta=self.beta,
                momentum=self.momentum,
                min_rows=self.min_rows,
                positives=positives,
                negative_statistic=self.negative_statistic,
            )
            self.margin.copy_(margin)
        if positives is not None:
            positives = positives | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        return triplet_loss(scores, positives, margin=margin, negatives=self.negatives)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> AdaptiveMarginTripletLoss:
        """Follow ``.to(device)``, but not a cast: half precision would lose the small steps."""
        margin = self.margin
        super()._apply(fn, recurse)
        if self.margin.dtype != margin.dtype:
            self.margin = margin.to(self.margin.device)
        return self

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, beta={self.beta}, momentum={self.momentum}, "
            f"min_rows={self.min_rows}, negatives={self.negatives!r}, "
            f"negative_statistic={self.negative_statistic!r}"
        )
