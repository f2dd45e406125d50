"""Triplet loss whose margin follows the scores of the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from itmkit.checks import (
    check_choice,
    check_count,
    check_non_negative,
    check_positive,
    check_share,
)
from itmkit.losses.scores import Costs, Reduction, Rows, check_scores
from itmkit.losses.triplet import HingeLoss, Negatives, triplet_costs

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

    Counted are the true pairs that are no smaller than any negative of their row, of which there
    must be one. One Gaussian is fitted to their scores :math:`S_{ij}` and one to their negative
    statistics :math:`s_{ij}`, with unbiased standard deviations. The target solves

    .. math::

        \beta\, \mathcal{N}(m^*; \mu_p, \sigma_p) = \mathcal{N}(m^*; \mu_n, \sigma_n), \qquad
        m \leftarrow (1 - \alpha)\, m^* + \alpha\, m

    with α the momentum. Of two solutions it is the upper one if :math:`\sigma_p > \sigma_n`, else
    the lower one; of equal deviations there is one. A target above 1 is replaced by 0.2. The margin
    is kept if the target is negative or does not exist (no real root, a deviation of zero, a score
    that is not finite), or if there are too few pairs.

    DAIM's margin optimisation. Differs from the released code: constants added against a division
    by zero are replaced by the exact limits.

    Args:
        scores: similarity of every image (row) and caption (column); no gradient flows through.
        margin: the present margin, at least 0.
        beta: weight β of the density of the positives, above 0; below 1 it raises the crossing
            between the two means.
        momentum: weight of the present margin, in [0, 1].
        min_rows: from how many counted pairs on the margin moves, at least 2.
        positives: bool, all true pairs; None: the diagonal of a square matrix.
        negative_statistic: of a pair whose row has k negatives, ``"released"``, as DAIM was
            trained: :math:`s_{ij} = m + \frac{1}{k(k+1)} \sum_l (S_{il} - S_{ij})`, which divides
            twice and so stays near the margin; or ``"mean"``, their mean
            :math:`\frac1k \sum_l S_{il}`.

    Shape:
        scores, positives: ``(n, m)``; margin: ``()``; result: ``()``.

    Returns:
        The next margin, in float64; it is never read on the host.

    Raises:
        InputError: for a wrong shape or dtype, a number out of its range, or an unknown statistic.

    Example:
        >>> scores = torch.tensor([[0.8, 0.1, 0.2], [0.3, 0.6, 0.1], [0.3, 0.2, 0.9]])
        >>> adaptive_margin(scores, 0.2, min_rows=2, negative_statistic="mean")
        tensor(0.2169, dtype=torch.float64)
    """
    check_non_negative(margin=margin)
    _check_numbers(beta, momentum, min_rows, negative_statistic)
    check_scores(scores, positives)
    return _next_margin(
        [Rows(scores.detach(), positives)],
        margin,
        beta=beta,
        momentum=momentum,
        min_rows=min_rows,
        negative_statistic=negative_statistic,
    )


def _next_margin(
    parts: Iterable[Rows],
    margin: float | Tensor,
    *,
    beta: float,
    momentum: float,
    min_rows: int,
    negative_statistic: NegativeStatistic,
) -> Tensor:
    """The next margin from all rows of a score matrix, which may come in parts."""
    present, scale = torch.as_tensor(margin, dtype=torch.float64).detach(), None
    positive, negative = _Gaussian(), _Gaussian()
    for rows in parts:
        if rows.scores.numel() == 0:
            continue
        scores, is_positive = rows.scores.double(), rows.is_positive()
        if scale is None:
            # The crossing scales with the scores: below 1, no square of them overflows.
            scale = scores.abs().amax().clamp(min=1)
            present = present.to(scores.device)
        scores = scores / scale
        count = (~is_positive).sum(dim=1, keepdim=True)
        hardest = scores.masked_fill(is_positive, -torch.inf).amax(dim=1, keepdim=True)
        total = scores.where(~is_positive, 0).sum(dim=1, keepdim=True)
        counted = is_positive & (count > 0) & (scores >= hardest)
        if negative_statistic == "released":
            differences = (total - count * scores) / (count * (count + 1)).clamp(min=1)
            statistic = present / scale + differences
        else:
            statistic = (total / count.clamp(min=1)).expand_as(scores)
        positive = positive.with_more(scores, counted)
        negative = negative.with_more(statistic, counted)
    if scale is None:
        return present
    target = scale * _crossing(
        positive.mean, positive.deviation(), negative.mean, negative.deviation(), beta
    )
    moves = (positive.number >= min_rows) & (target >= 0)
    target = target.where(target <= 1, _MARGIN_ABOVE_ONE)
    return ((1 - momentum) * target + momentum * present).where(moves, present)


class _Gaussian(NamedTuple):
    """Number, mean and sum of squared deviations of some values."""

    number: Tensor = torch.zeros((), dtype=torch.long)
    mean: Tensor = torch.zeros((), dtype=torch.float64)
    squares: Tensor = torch.zeros((), dtype=torch.float64)

    def with_more(self, values: Tensor, counted: Tensor) -> _Gaussian:
        """Of the counted ones of these values too."""
        more = counted.sum()
        number = self.number.to(more.device) + more
        mean = values.where(counted, 0).sum() / more.clamp(min=1)
        squares = (values - mean).square().where(counted, 0).sum()
        gap, share = mean - self.mean, more / number.clamp(min=1)
        return _Gaussian(
            number,
            self.mean + gap * share,
            self.squares + squares + gap.square() * (number - more) * share,
        )

    def deviation(self) -> Tensor:
        """Unbiased standard deviation."""
        return (self.squares / (self.number - 1).clamp(min=1)).sqrt()


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
    # What is below that is rounding: scores are at most 1 here. Those of an image that is twice in
    # a batch are equal but for the rounding of float32.
    exists = torch.where(equal, gap.abs() > 1e-12, radicand > 0)
    exists = exists & (positive_deviation > 1e-6) & (negative_deviation > 1e-12)
    return (negative_mean + torch.where(equal, linear, quadratic)).where(exists, torch.nan)


def _check_numbers(beta: float, momentum: float, min_rows: int, negative_statistic: str) -> None:
    check_positive(beta=beta)
    check_share(momentum=momentum)
    check_count(2, min_rows=min_rows)
    check_choice("negative_statistic", negative_statistic, NegativeStatistic)


class AdaptiveMarginTripletLoss(HingeLoss):
    """Triplet loss of DAIM, whose margin follows the scores.

    In training the margin first takes the step of
    :func:`~itmkit.losses.functional.adaptive_margin`, then the loss is
    :class:`~itmkit.losses.TripletLoss` with it; in eval mode the margin stays. No gradient flows
    through the margin. It is a buffer ``margin``, float64 whatever the module is cast to, and saved
    with the module. The loss is a plain function of the score matrix: gather the scores first, and
    every rank has the same margin. Expects scores of about the size of cosines: a margin above 1 is
    never taken. DAIM's code sums: ``reduction="sum"``.

    Args:
        margin: what the margin starts from, at least 0, in units of the scores.
        beta: weight of the density of the true pairs, above 0; below 1 it raises the margin.
        momentum: weight of the present margin in a step, in [0, 1].
        min_rows: how many true pairs must be no smaller than the negatives of their row for the
            margin to move, at least 2.
        negatives: ``"hardest"`` or ``"all"`` negatives count in the loss.
        negative_statistic: what the margin is drawn from: ``"released"``, as DAIM was trained, or
            ``"mean"``, the means of the negatives; formulas:
            :func:`~itmkit.losses.functional.adaptive_margin`.
        reduction: ``"mean"`` over true pairs, of either direction, or their ``"sum"``.

    Shape:
        scores ``(n, m)``, positives bool ``(n, m)`` or None (the diagonal) → ``()``.

    Raises:
        InputError: for a number out of its range or an unknown choice; in use, a wrong shape or
            dtype.

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
        *,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(negatives, reduction=reduction)
        check_non_negative(margin=margin)
        _check_numbers(beta, momentum, min_rows, negative_statistic)
        self.register_buffer("margin", torch.tensor(margin, dtype=torch.float64))
        self.beta = beta
        self.momentum = momentum
        self.min_rows = min_rows
        self.negative_statistic: NegativeStatistic = negative_statistic

    def observe(self, parts: Iterable[Rows]) -> None:
        """In training, move the margin."""
        if self.training:
            margin = _next_margin(
                parts,
                self.margin,
                beta=self.beta,
                momentum=self.momentum,
                min_rows=self.min_rows,
                negative_statistic=self.negative_statistic,
            )
            self.margin.copy_(margin)

    def costs(self, rows: Rows) -> Costs:
        # A copy: the buffer may move before the gradient is computed.
        return triplet_costs(rows, margin=self.margin.clone(), negatives=self.negatives)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> AdaptiveMarginTripletLoss:
        """Follow ``.to(device)``, but not a cast: half precision would lose the small steps."""
        margin = self.margin
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # of torch
        if self.margin.dtype != margin.dtype:
            self.margin = margin.to(self.margin.device)
        return self

    def extra_repr(self) -> str:
        return (
            f"margin={self.margin}, beta={self.beta}, momentum={self.momentum}, "
            f"min_rows={self.min_rows}, negatives={self.negatives!r}, "
            f"negative_statistic={self.negative_statistic!r}, reduction={self.reduction!r}"
        )
