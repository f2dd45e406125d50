"""Hinge of every positive pair against the negatives of its row and of its column."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from itmkit.checks import check_choice, check_non_negative
from itmkit.losses.scores import check_scores
from itmkit.precision import at_least_float32

Negatives = Literal["hardest", "all"]


def triplet_loss(
    scores: Tensor,
    positives: Tensor | None = None,
    *,
    margin: float | Tensor = 0.2,
    negatives: Negatives = "hardest",
) -> Tensor:
    r"""Bidirectional hinge-based triplet ranking loss on a score matrix.

    .. math::

        L = \sum_{(i,j) \in P} \Big[
            \operatorname*{agg}_{k:\,(i,k) \notin P} [m + S_{ik} - S_{ij}]_+ +
            \operatorname*{agg}_{k:\,(k,j) \notin P} [m + S_{kj} - S_{ij}]_+ \Big]

    with agg the maximum (``"hardest"``) or the sum (``"all"``). Each positive pair is one anchor in
    its row and one in its column; other positives of the row or column are no negatives. A pair
    without negatives costs nothing. The terms are summed, not averaged. ``torch.compile`` traces it
    whole, except that older torch breaks the graph where given positives meet all negatives.

    Faghri et al., VSE++: Improving Visual-Semantic Embeddings with Hard Negatives, BMVC 2018.

    Args:
        scores: similarity of every image (row) and caption (column).
        positives: bool, True where image and caption match; None for a square matrix whose diagonal
            holds the positives.
        margin: by how much a positive must beat its negatives; at least 0, in units of the scores.
        negatives: ``"hardest"`` or ``"all"`` negatives of the row and of the column.

    Shape:
        scores, positives: ``(n, m)``; result: ``()``.

    Returns:
        The loss, in float32 (float64 for float64 scores).

    Raises:
        InputError: for a wrong shape or dtype, a negative margin, or unknown ``negatives``.

    Example:
        >>> scores = torch.tensor([[0.9, 0.8], [0.1, 0.7]])
        >>> triplet_loss(scores, margin=0.2)  # 0.1 in row 0, 0.3 in column 1
        tensor(0.4000)
    """
    check_non_negative(margin=margin)
    check_negatives(negatives)
    check_scores(scores, positives)
    scores = at_least_float32(scores)
    if positives is None:
        positive = scores.diagonal()
        rows = scores, ~torch.eye(len(scores), dtype=torch.bool, device=scores.device)
        columns = scores.T, rows[1]
    else:
        if negatives == "hardest":
            in_rows = _hinge_of_hardest(scores, positives, margin)
            return in_rows + _hinge_of_hardest(scores.T, positives.T, margin)
        row, column = positives.nonzero(as_tuple=True)
        positive = scores[row, column]
        rows = scores[row], ~positives[row]
        columns = scores.T[column], ~positives.T[column]
    in_rows = hinge(positive, *rows, margin=margin, negatives=negatives)
    return in_rows + hinge(positive, *columns, margin=margin, negatives=negatives)


def _hinge_of_hardest(scores: Tensor, positives: Tensor, margin: float | Tensor) -> Tensor:
    """All positives of a row against its one hardest negative; their number need not be known."""
    if scores.shape[1] == 0:
        return scores.sum()
    hardest = scores.masked_fill(positives, -torch.inf).amax(dim=1, keepdim=True)
    counted = positives & (hardest > -torch.inf)
    return (margin + hardest - scores).relu().where(counted, 0).sum()


def hinge(
    positive: Tensor,
    candidates: Tensor,
    is_negative: Tensor,
    *,
    margin: float | Tensor,
    negatives: Negatives,
) -> Tensor:
    """Sum over anchors of the hinge against the hardest, or against all, of their negatives.

    Args:
        positive: score of each anchor with its positive.
        candidates: scores of each anchor with its candidates.
        is_negative: bool, which candidates are negatives.
        margin: by how much the positive must beat a negative.
        negatives: ``"hardest"`` or ``"all"``.

    Shape:
        positive: ``(a,)``; candidates, is_negative: ``(a, c)``; result: ``()``.

    Returns:
        The sum; zero, with a graph, where there is no negative.

    Example:
        >>> candidates = torch.tensor([[0.5, 0.4]])
        >>> hinge(candidates[:, 0], candidates, candidates < 0.5, margin=0.2, negatives="all")
        tensor(0.1000)
    """
    costs = (margin + candidates - positive[:, None]).relu().masked_fill(~is_negative, 0)
    if negatives == "all" or costs.shape[1] == 0:
        return costs.sum()
    return costs.amax(dim=1).sum()


def check_negatives(negatives: str) -> None:
    """Raise unless ``negatives`` names a known choice."""
    check_choice("negatives", negatives, Negatives)


class HingeLoss(nn.Module):
    """Margin and choice of negatives of the hinge losses."""

    def __init__(self, margin: float, negatives: Negatives) -> None:
        super().__init__()
        check_non_negative(margin=margin)
        self.margin = margin
        self.negatives = negatives

    @property
    def negatives(self) -> Negatives:
        """Which negatives count, ``"hardest"`` or ``"all"``; may be set at any time."""
        return self._negatives

    @negatives.setter
    def negatives(self, value: Negatives) -> None:
        check_negatives(value)
        self._negatives: Negatives = value

    def extra_repr(self) -> str:
        return f"margin={self.margin}, negatives={self.negatives!r}"


class TripletLoss(HingeLoss):
    """Bidirectional hinge-based triplet ranking loss; formula and arguments: :func:`triplet_loss`.

    Shape:
        scores ``(n, m)``, positives bool ``(n, m)`` or None (the diagonal) → ``()``.

    Example:
        >>> loss = TripletLoss(margin=0.2, negatives="all")
        >>> loss(torch.eye(3))
        tensor(0.)
        >>> loss.negatives = "hardest"  # after a warm-up
    """

    def __init__(self, margin: float = 0.2, negatives: Negatives = "hardest") -> None:
        super().__init__(margin, negatives)

    def forward(self, scores: Tensor, positives: Tensor | None = None) -> Tensor:
        """The loss of a score matrix."""
        return triplet_loss(scores, positives, margin=self.margin, negatives=self.negatives)
