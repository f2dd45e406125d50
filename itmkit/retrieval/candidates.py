"""The best items of each query, found block by block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itmkit.distributed import gather
from itmkit.metrics.ranks import tie_groups

_LAST = 0x7FFFFFFF  # the largest int32
_NO_KEY = torch.iinfo(torch.int64).min  # below the key of any finite score


def key(scores: Tensor, items: Tensor) -> Tensor:
    """One int64 for a score and the number of its item, which sorts by both.

    The upper half is the score: the bits of an fp32 number, changed so that as an int32 they have
    the order of the numbers. The lower half is the largest int32 minus the number of the item, so
    that of equal scores the item with the smaller number has the larger key.

    Args:
        scores: finite fp32 of any shape.
        items: int64 from 0 to 2³¹ − 1, of a shape that broadcasts.

    Example:
        The bits of 0.5 are 3F000000, and of 0.75 they are 3F400000. Those of −0.5 are BF000000; all
        but the sign flipped they are C0FFFFFF, which as an int32 is negative and so comes last.
        Items 7 and 8 are 7FFFFFF8 and 7FFFFFF7.

        >>> scores, items = torch.tensor([0.5, 0.5, 0.75, -0.5]), torch.tensor([7, 8, 9, 9])
        >>> [f"{one & 0xFFFFFFFFFFFFFFFF:016X}" for one in key(scores, items).tolist()]
        ['3F0000007FFFFFF8', '3F0000007FFFFFF7', '3F4000007FFFFFF6', 'C0FFFFFF7FFFFFF6']
        >>> score_and_item(key(scores, items).sort(descending=True).values)
        (tensor([ 0.7500,  0.5000,  0.5000, -0.5000]), tensor([9, 7, 8, 9]))
    """
    bits = (scores + 0.0).view(torch.int32)  # adding makes -0 equal to 0
    return (_in_order(bits).long() << 32) | (_LAST - items)


def score_and_item(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The fp32 score and the int64 number of the item of each :func:`key`."""
    return _in_order((keys >> 32).int()).view(torch.float32), _LAST - (keys & 0xFFFFFFFF)


@dataclass
class Candidates:
    """The best items of each query: rows (q, k), their scores (q, k), the best left out (q,)."""

    rows: Tensor
    scores: Tensor
    left_out: Tensor

    def first(self, k: int) -> Candidates:
        """The ``k`` best of each query."""
        more = self.scores.shape[1] > k
        left_out = self.scores[:, k] if more else self.left_out
        return Candidates(self.rows[:, :k], self.scores[:, :k], left_out)

    def reordered(self, blended: Tensor) -> Candidates:
        """The same with the first ones in the order of other scores ``(q, h)``, which they get."""
        head = blended.shape[1]
        scores, order = blended.sort(dim=1, descending=True, stable=True)
        rows = self.rows[:, :head].gather(1, order)
        return Candidates(
            torch.cat([rows, self.rows[:, head:]], 1),
            torch.cat([scores, self.scores[:, head:]], 1),
            self.left_out,
        )


class Best:
    """Finds the k best items of each query from blocks of scores, of equal ones the first.

    A score and the number of its item are packed into one whole number, the key of the item. Of two
    keys the larger one has the better score, or the same score and the smaller number. All keys
    differ, so one ``topk`` finds the same items in whatever order the blocks come. See :func:`key`.

    Args:
        queries: number of queries.
        items: number of items, below 2³¹.
        k: items wanted per query.
        device: where the scores are.

    Example:
        >>> best = Best(queries=1, items=4, k=2, device=torch.device("cpu"))
        >>> best.see(torch.tensor([[0.5, 0.9]]), slice(None), torch.tensor([2, 3]))
        >>> best.see(torch.tensor([[0.1, 0.5]]), slice(None), torch.tensor([0, 1]))
        >>> best.found(torch.device("cpu"))
        Candidates(rows=tensor([[3, 1]]), scores=tensor([[0.9000, 0.5000]]),
            left_out=tensor([0.5000]))
    """

    def __init__(self, queries: int, items: int, k: int, device: torch.device) -> None:
        self.k, self.items = min(k, items), items
        # One more than wanted: the best of those left out.
        self.keys = torch.full((queries, self.k + 1), _NO_KEY, device=device)

    def see(self, block: Tensor, queries: slice | Tensor, items: Tensor) -> None:
        """Take the finite fp32 scores of some queries with the items of these numbers."""
        own = self.keys[queries]
        least = score_and_item(own[:, -1])[0].masked_fill(own[:, -1] == _NO_KEY, -torch.inf)
        count = int((block >= least[:, None]).sum(1).max())  # of a query that may enter, at most
        if count == 0:
            return
        if 4 * count < block.shape[1]:  # then few keys are made; all that may enter are among them
            block, place = block.contiguous().topk(count, dim=1)
            items = items[place]
        keys = torch.cat([own, key(block, items)], 1)
        self.keys[queries] = keys.topk(self.k + 1, dim=1).values

    def share(self) -> None:
        """Take what all processes have seen."""
        keys = torch.cat(gather(self.keys[None]).unbind(), 1)
        self.keys = keys.topk(self.k + 1, dim=1).values

    def found(self, device: torch.device) -> Candidates:
        """The best of all that was seen, best first."""
        scores, rows = score_and_item(self.keys.to(device))
        left_out = scores[:, self.k]
        if self.k == self.items:
            left_out = torch.full_like(left_out, -torch.inf)
        return Candidates(rows[:, : self.k], scores[:, : self.k], left_out)


class FirstTied:
    """Finds the first k items of each query whose scores lie in a range.

    Args:
        least: ``(q,)`` fp32, the least of the range.
        most: ``(q,)`` fp32, the largest.
        k: items wanted; each query has so many.
    """

    def __init__(self, least: Tensor, most: Tensor, k: int) -> None:
        self.least, self.most, self.k = least[:, None], most[:, None], k
        self.keys = torch.full((len(least), k), _NO_KEY, device=least.device)

    def see(self, block: Tensor, items: Tensor) -> None:
        """Take the finite fp32 scores ``(q, c)`` with the items of these numbers."""
        wanted = (block >= self.least) & (block <= self.most)
        keys = _swapped(key(block, items)).where(wanted, _NO_KEY)  # so the number decides
        self.keys = torch.cat([self.keys, keys], 1).topk(self.k, dim=1).values

    def found(self) -> tuple[Tensor, Tensor]:
        """Scores and rows ``(q, k)`` of the items, in the order of their rows."""
        return score_and_item(_swapped(self.keys))


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
    best = tie_groups(scores)
    group = torch.zeros_like(rows)
    group[:, 1:] = (best[:, 1:] != best[:, :-1]).cumsum(1)
    order = (group * (_LAST + 1) + rows).argsort(1)
    return scores.gather(1, order), rows.gather(1, order), best.gather(1, order)


def _swapped(keys: Tensor) -> Tensor:
    """The keys with their upper and lower halves exchanged, and back."""
    return (keys << 32) | ((keys >> 32) & 0xFFFFFFFF)


def _in_order(bits: Tensor) -> Tensor:
    """The bits of fp32 numbers as int32 of the same order, and back.

    Bits of positive numbers are in order as they are; those of negative numbers run backwards, so
    all but their sign are flipped.
    """
    return bits ^ ((bits >> 31) & _LAST)
