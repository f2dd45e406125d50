"""The losses as the field's loops compute them, an anchor at a time, written after the formulas."""

from __future__ import annotations

import math
import statistics

import torch
import torch.nn.functional as F
from torch import Tensor


def hect_loop(image: Tensor, text: Tensor) -> Tensor:
    """HECT of n images and their texts, an anchor at a time; margin 1, τ = 0.5, λ = 0.5."""
    z = torch.cat([F.normalize(image, dim=1), F.normalize(text, dim=1)])
    n, total = len(image), z.new_zeros(())
    for anchor in range(2 * n):
        partner = (anchor + n) % (2 * n)
        similarities = z @ z[anchor]
        positive = similarities[partner]
        others = [row for row in range(2 * n) if row not in (anchor, partner)]
        hardest = similarities[others].max()
        triplet = (2 - 2 * positive).sqrt() - (2 - 2 * hardest).sqrt() + 1.0
        contrast = -torch.log((positive / 0.5).exp() / (hardest / 0.5).exp())
        total = total + triplet.clamp(min=0) + 0.5 * contrast
    return total / (2 * n)


def triplet_loop(scores: Tensor, margin: float = 0.2, group_size: int = 1) -> Tensor:
    """Hinge of each view's weakest partner of its group against its hardest negative, both ways."""
    n, total = len(scores), scores.new_zeros(())
    for side in (scores, scores.T):
        for anchor in range(n):
            first = anchor // group_size * group_size
            group = range(first, first + group_size)
            positive = min(side[anchor, row] for row in group)
            others = [row for row in range(n) if row not in group]
            total = total + (margin + side[anchor, others].max() - positive).clamp(min=0)
    return total


def adaptive_margin_loop(scores: Tensor, margin: float, beta: float = 0.3) -> Tensor:
    """DAIM's margin, moved by the released statistic, and the triplet loss with it."""
    n, positives, negatives = len(scores), [], []
    for row in range(n):
        if scores[row].argmax().item() == row:
            positive = scores[row, row].item()
            differences = sum(scores[row, j].item() - positive for j in range(n) if j != row)
            positives.append(positive)
            negatives.append(margin + differences / ((n - 1) * n))
    if len(positives) >= 46:
        margin = 0.9 * margin + 0.1 * _crossing(positives, negatives, beta, margin)
    return triplet_loop(scores, margin)


def hinge_cross_entropy_loop(
    scores: Tensor, margin: float = 0.2, temperature: float = 0.05
) -> Tensor:
    """Cross entropy of the hinge costs of every row, and of every column."""
    scores = scores.sigmoid()
    n, total = len(scores), scores.new_zeros(())
    for side in (scores, scores.T):
        for anchor in range(n):
            costs = (margin + side[anchor] - side[anchor, anchor]).clamp(min=0)
            others = [row for row in range(n) if row != anchor]
            total = total + (1 + (costs[others] / temperature).exp().sum()).log() / n
    return total


def _crossing(
    positives: list[float], negatives: list[float], beta: float, otherwise: float
) -> float:
    """Where the Gaussians of both cross."""
    mean_p, mean_n = statistics.fmean(positives), statistics.fmean(negatives)
    var_p, var_n = statistics.variance(positives), statistics.variance(negatives)
    a = var_p - var_n
    b = 2 * (mean_p * var_n - mean_n * var_p)
    log = math.log(beta * math.sqrt(var_n) / math.sqrt(var_p))
    c = mean_n**2 * var_p - mean_p**2 * var_n + 2 * var_p * var_n * log
    discriminant = b * b - 4 * a * c
    if discriminant <= 0:
        return otherwise
    root = (-b + math.sqrt(discriminant)) / (2 * a)
    if root < 0:
        return otherwise
    return 0.2 if root > 1 else root
