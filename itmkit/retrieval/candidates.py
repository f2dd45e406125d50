"""The best items of each query, found block by block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itmkit.distributed import gather
from itmkit.metrics.ranks import tied_from

_LAST = 0x7FFFFFFF  # the largest int32


@dataclass
class Candidates:
    """The best items of each query: rows (q, k), their scores (q, k), the best left out (q,)."""

    rows: Tensor
    scores: Tensor
    left_out: Tensor


class Best:
    """Finds the k best items of each query from blocks of scores, of equal ones the first.

    A score and the number of its item are kept as one whole number, so that the order in which the
    blocks come has no say in who is best.
    """

    def __init__(self, queries: int, items: int, k: int, device: torch.device) -> None:
        self.k, self.items = min(k, items), items
        least = torch.iinfo(torch.int64).min
        self.keys = torch.full((queries, self.k + 1), least, device=device)

    def see(self, block: Tensor, queries: slice | Tensor, items: Tensor) -> None:
        """Take the finite fp32 scores of some queries with some items."""
        bits = (block + 0.0).view(torch.int32)  # adding makes -0 equal to 0
        keys = (_in_order(bits).long() << 32) | (_LAST - items)
        keys = torch.cat([self.keys[queries], keys], 1)
        self.keys[queries] = keys.topk(self.k + 1, dim=1).values

    def share(self) -> None:
        """Take what all processes have seen."""
        keys = torch.cat(gather(self.keys[None]).unbind(), 1)
        self.keys = keys.topk(self.k + 1, dim=1).values

    def found(self, device: torch.device) -> Candidates:
        """The best of all that was seen, best first."""
        keys = self.keys.to(device)
        rows = _LAST - (keys & 0xFFFFFFFF)
        scores = _in_order((keys >> 32).int()).view(torch.float32)
        left_out = scores[:, self.k]
        if self.k == self.items:
            left_out = torch.full_like(left_out, -torch.inf)
        return Candidates(rows[:, : self.k], scores[:, : self.k], left_out)


class FirstTied:
    """Finds the first k items of each query whose scores lie in a range, from blocks of scores.

    Args:
        least: ``(q,)`` fp32, the least of the range.
        most: ``(q,)`` fp32, the largest.
        k: items wanted; each query has so many.
    """

    def __init__(self, least: Tensor, most: Tensor, k: int) -> None:
        self.least, self.most, self.k = least[:, None], most[:, None], k
        self.keys = torch.empty(len(least), 0, dtype=torch.int64, device=least.device)

    def see(self, block: Tensor, items: Tensor) -> None:
        """Take the finite fp32 scores ``(q, c)`` with the items of these numbers."""
        wanted = (block >= self.least) & (block <= self.most)
        keys = (items << 32) | (block.contiguous().view(torch.int32).long() & 0xFFFFFFFF)
        keys = torch.cat([self.keys, keys.where(wanted, torch.iinfo(torch.int64).max)], 1)
        self.keys = keys.topk(min(self.k, keys.shape[1]), dim=1, largest=False).values

    def found(self) -> tuple[Tensor, Tensor]:
        """Scores and rows ``(q, k)`` of the items, in the order of their rows."""
        scores = (self.keys & 0xFFFFFFFF).to(torch.int32).view(torch.float32)
        return scores, self.keys >> 32


def tied_in_order(scores: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sorted items, those tied with the best that is left put in the order of their rows.

    Args:
        scores: ``(q, k)``, the largest of each row first.
        rows: ``(q, k)`` int64, the rows of the items.

    Returns:
        The scores and rows in that order, and for each the score that it is tied with.

    Example:
        >>> scores = torch.tensor([[2, 1 + 1e-6, 1]])
        >>> tied_in_order(scores, torch.tensor([[9, 8, 7]]))[1].tolist()
        [[9, 7, 8]]
    """
    best = scores.clone()
    near = scores[:, 1:] >= tied_from(scores[:, :-1])
    for place in near.any(0).nonzero()[:, 0].tolist():
        tied = scores[:, place + 1] >= tied_from(best[:, place])
        best[:, place + 1] = best[:, place].where(tied, scores[:, place + 1])
    group = torch.zeros_like(rows)
    group[:, 1:] = (best[:, 1:] != best[:, :-1]).cumsum(1)
    order = (group * (_LAST + 1) + rows).argsort(1)
    return scores.gather(1, order), rows.gather(1, order), best.gather(1, order)


def _in_order(bits: Tensor) -> Tensor:
    """The bits of fp32 numbers as integers of the same order, and back."""
    return bits ^ ((bits >> 31) & _LAST)
