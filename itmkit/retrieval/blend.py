"""The score that candidates are put in order by: of both stages, in one scale."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

LEAST_SPREAD = 1e-5  # of scores around 1: below, scores differ by rounding alone


def blend(first: Tensor, second: Tensor, weight: float, *, standardised: bool) -> Tensor:
    """Scores of both stages of the candidates of each query, as one.

    Standardised, the second stage's scores of a query get the mean and the standard deviation of
    its first stage's, over the candidates, before they are mixed. The order is that of the mean of
    both z-scores, and the blended scores stay comparable with first-stage scores of items that are
    no candidates. Scores of a stage that are all the same say nothing.

    Args:
        first: ``(q, k)`` first-stage scores of the candidates.
        second: ``(q, k)`` second-stage scores.
        weight: share of the second stage, in [0, 1].
        standardised: whether the second stage is brought to the scale of the first.

    Returns:
        ``(q, k)``.

    Example:
        >>> import torch
        >>> cosines, logits = torch.tensor([[0.6, 0.5]]), torch.tensor([[-30.0, 90.0]])
        >>> blend(cosines, logits, 1.0, standardised=True)
        tensor([[0.5000, 0.6000]])
    """
    if standardised and first.shape[1]:
        spread = first.std(1, correction=0, keepdim=True)
        center, own = second.mean(1, keepdim=True), second.std(1, correction=0, keepdim=True)
        differs = own > LEAST_SPREAD * center.abs().clamp(min=1)
        scale = spread.where(spread > LEAST_SPREAD, 1) / own.where(differs, 1)
        moved = (second - center) * scale.where(differs, 0)
        second = first.mean(1, keepdim=True) + moved
    return (1 - weight) * first + weight * second


class Scale(NamedTuple):
    """Mean and spread of scores, by which they are compared with those of something else."""

    mean: float
    std: float
    """1 where the scores differ by rounding alone, so that they count nothing."""

    @classmethod
    def of(cls, scores: Tensor) -> Scale:
        """The scale of some scores, of any shape."""
        if not scores.numel():
            return cls(0.0, 1.0)
        values = scores.double()
        mean, std = float(values.mean()), float(values.std(correction=0))
        return cls(mean, std if std > LEAST_SPREAD * max(abs(mean), 1) else 1.0)

    def standardise(self, scores: Tensor) -> Tensor:
        """Scores in units of the spread, from the mean."""
        return (scores.float() - self.mean) / self.std
