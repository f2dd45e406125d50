"""Cross entropy over the hinge costs of the candidates of every row and column."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itmkit.checks import check_non_negative, check_positive
from itmkit.losses.scores import check_scores
from itmkit.precision import at_least_float32


def hinge_cross_entropy_loss(
    scores: Tensor,
    positives: Tensor | None = None,
    *,
    margin: float = 0.2,
    temperature: float = 0.05,
) -> Tensor:
    r"""Cross entropy of hinge costs, image to text plus text to image.

    .. math::

        L = \frac1n \sum_i \log \Big(1 + \sum_{j \ne i} e^{[m + S_{ij} - S_{ii}]_+ / \tau}\Big) +
            \frac1n \sum_j \log \Big(1 + \sum_{i \ne j} e^{[m + S_{ij} - S_{jj}]_+ / \tau}\Big)

    The costs are the logits and the diagonal, of cost 0, is the target. Each direction is least,
    log n and not 0, when no pair costs anything; for a small temperature, τ times the loss is the
    triplet loss of the hardest negatives, averaged. Logits saturate, with a gradient of zero, at
    1e-8 of the largest number of their precision, so that the loss of finite scores is finite.

    TVRN's loss. Differs from the released code: that takes the softmax over rows in both
    directions.

    Args:
        scores: similarity of every image (row) and its captions (column), the true pairs on the
            diagonal. TVRN puts in the sigmoid of its logits, in [0, 1]; the defaults suit these.
        positives: bool, True on further true pairs; they are no negatives and left out of the
            sums. None if there are none.
        margin: m, by how much a positive must beat its negatives; at least 0, in units of the
            scores.
        temperature: τ the costs are divided by, above 0.

    Shape:
        scores, positives: ``(n, n)``; result: ``()``.

    Returns:
        The loss, in float32 (float64 for float64 scores); zero, with a graph, of no scores.

    Raises:
        InputError: for a wrong shape or dtype, or a number out of its range.

    Example:
        >>> hinge_cross_entropy_loss(torch.eye(3))  # no costs: twice log 3
        tensor(2.1972)
    """
    check_non_negative(margin=margin)
    check_positive(temperature=temperature)
    check_scores(scores, positives, square=True)
    scores = at_least_float32(scores)
    diagonal = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    left_out = None
    if positives is not None:
        left_out = positives & ~diagonal
    if len(scores) == 0:
        return scores.sum()
    positive, largest = scores.diagonal(), 1e-8 * torch.finfo(scores.dtype).max
    loss = scores.new_zeros(())
    for dim in (1, 0):
        costs = (margin + scores - positive.unsqueeze(dim)).relu().masked_fill(diagonal, 0)
        logits = (costs / temperature).clamp(max=largest)
        if left_out is not None:
            logits = logits.masked_fill(left_out, -torch.inf)
        loss = loss + logits.logsumexp(dim).mean()
    return loss


class HingeCrossEntropyLoss(nn.Module):
    """Cross entropy of hinge costs; formula: :func:`hinge_cross_entropy_loss`.

    Args:
        margin: by how much a positive must beat its negatives; at least 0, in units of the scores.
        temperature: what the costs are divided by, above 0.
        weight: factor on the sum of both directions, at least 0; TVRN's released code takes 0.5.

    Shape:
        scores ``(n, n)``, positives bool ``(n, n)`` or None → ``()``.

    Example:
        >>> loss = HingeCrossEntropyLoss(margin=0.2, temperature=0.05)
        >>> loss(torch.tensor([[0.9, 0.8], [0.1, 0.7]]))
        tensor(4.7578)
    """

    def __init__(
        self, margin: float = 0.2, temperature: float = 0.05, *, weight: float = 1.0
    ) -> None:
        super().__init__()
        check_non_negative(margin=margin, weight=weight)
        check_positive(temperature=temperature)
        self.margin = margin
        self.temperature = temperature
        self.weight = weight

    def forward(self, scores: Tensor, positives: Tensor | None = None) -> Tensor:
        """The loss of a score matrix."""
        return self.weight * hinge_cross_entropy_loss(
            scores, positives, margin=self.margin, temperature=self.temperature
        )

    def extra_repr(self) -> str:
        return f"margin={self.margin}, temperature={self.temperature}, weight={self.weight}"
