"""What all losses of a score matrix share: true pairs, both directions, mean or sum."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, check_bool, check_choice, check_floating, check_shape
from itmkit.precision import at_least_float32, autocast_off

Reduction = Literal["mean", "sum"]


class Costs(NamedTuple):
    """What some anchors cost together ``()``, and how many of them count."""

    total: Tensor
    number: Tensor | int


class Anchors(NamedTuple):
    """True pairs, each with all candidates of its row."""

    positive: Tensor
    """``(a,)``: score of the true pair."""
    candidates: Tensor
    """``(a, m)``: scores of its row."""
    is_negative: Tensor
    """bool ``(a, m)``: which of them belong to no true pair."""


class Rows(NamedTuple):
    """Some rows of a score matrix, in at least float32."""

    scores: Tensor
    """``(b, m)``."""
    positives: Tensor | None
    """bool ``(b, m)``, which pairs are true; None: of row i, column ``first + i``."""
    first: int = 0
    """Which row of the whole matrix the first one is."""

    def is_positive(self) -> Tensor:
        """Bool ``(b, m)``, which pairs are true."""
        if self.positives is not None:
            return self.positives
        rows, columns = self.scores.shape
        own = torch.arange(self.first, self.first + rows, device=self.scores.device)
        return own[:, None] == torch.arange(columns, device=self.scores.device)

    def diagonal(self) -> Tensor:
        """``(b,)``: scores of the true pairs where each row has its own column."""
        return self.scores.diagonal(self.first)

    def hardest_negative(self) -> Tensor:
        """``(b,)``: the largest score of a negative; -inf in a row without any."""
        return self.scores.masked_fill(self.is_positive(), -torch.inf).amax(dim=1)

    def anchors(self) -> Anchors:
        """Every true pair with its row; their number is read on the host if there is a mask."""
        if self.positives is None:
            return Anchors(self.diagonal(), self.scores, ~self.is_positive())
        row, column = self.positives.nonzero(as_tuple=True)
        return Anchors(self.scores[row, column], self.scores[row], ~self.positives[row])


def both_directions(
    costs: Callable[[Rows], Costs],
    scores: Tensor,
    positives: Tensor | None,
    reduction: Reduction,
    *,
    directions: int = 2,
) -> Tensor:
    """What the rows of a score matrix cost, plus what its columns cost.

    Args:
        costs: of rows.
        scores: ``(n, m)`` of every image (row) and caption (column).
        positives: bool ``(n, m)``, or None.
        reduction: of either direction.
        directions: 1: of the rows alone.

    Raises:
        InputError: see :func:`check_scores`; for an unknown reduction.
    """
    check_choice("reduction", reduction, Reduction)
    check_scores(scores, positives)
    scores = at_least_float32(scores)
    with autocast_off(scores):
        loss = reduced(costs(Rows(scores, positives)), reduction)
        if directions == 2:
            mirrored = None if positives is None else positives.T
            loss = loss + reduced(costs(Rows(scores.T, mirrored)), reduction)
    return loss


def reduced(costs: Costs, reduction: Reduction) -> Tensor:
    """The mean or the sum of costs; the mean of none is their total, a zero with a graph."""
    if reduction == "sum":
        return costs.total
    number = costs.number
    return costs.total / (number.clamp(min=1) if isinstance(number, Tensor) else max(number, 1))


class ScoreLoss(nn.Module, ABC):
    """Base of the losses of a score matrix: what the rows cost, plus what the columns cost.

    A subclass writes :meth:`costs`, of some rows; the columns are the rows of the transposed
    matrix. What it returns is summed or averaged, and computed in tiles where
    :class:`~itmkit.losses.VectorLoss` has a matrix too large to be held. :meth:`costs` gets scores
    in at least float32, with autocast off.

    Args:
        reduction: ``"mean"`` over the anchors that count, of either direction, or their ``"sum"``.

    Shape:
        scores ``(n, m)`` of images and captions, positives bool ``(n, m)``: all true pairs, of
        which a row or column may have any number, and which are never negatives; or None, the
        diagonal of a square matrix → ``()``.
    """

    #: 1 where all is counted by the rows
    directions: ClassVar[int] = 2
    #: how many adjacent rows belong together
    group_size: int = 1

    def __init__(self, *, reduction: Reduction = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, Reduction)
        self.reduction: Reduction = reduction

    @abstractmethod
    def costs(self, rows: Rows) -> Costs:
        """What the true pairs of some rows cost against the negatives of their rows."""

    def observe(self, parts: Iterable[Rows]) -> None:
        """See all rows, without gradients, before any is judged: for losses that adapt."""

    def forward(self, scores: Tensor, positives: Tensor | None = None) -> Tensor:
        """The loss of a score matrix."""
        check_scores(scores, positives)
        self.observe([Rows(at_least_float32(scores.detach()), positives)])
        return both_directions(
            self.costs, scores, positives, self.reduction, directions=self.directions
        )


def check_groups(shape: tuple[int, ...], group_size: int) -> None:
    """Raise unless this is the shape of the scores of whole groups of views.

    Raises:
        InputError: with the shape.
    """
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] % group_size:
        raise InputError(
            f"scores has the shape {tuple(shape)}; expected (B*K, B*K) with "
            f"K = group_size = {group_size}"
        )


def check_scores(scores: Tensor, positives: Tensor | None) -> None:
    """Raise unless these are scores and the true pairs among them.

    Args:
        scores: ``(n, m)``, of any floating dtype.
        positives: bool ``(n, m)``, or None for the diagonal of a square matrix.

    Raises:
        InputError: for a wrong type, shape, dtype or device.
    """
    check_floating("(n, m)", scores=scores)
    if scores.dim() != 2:
        raise InputError(f"scores has the shape {tuple(scores.shape)}; expected (n, m)")
    if positives is None:
        check_shape((len(scores), len(scores)), scores=scores)
    else:
        how = "image_ids[:, None] == text_image_ids"
        check_bool(tuple(scores.shape), scores.device, how, positives=positives)
