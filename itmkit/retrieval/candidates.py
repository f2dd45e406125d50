"""The best items of each query, found block by block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itmkit.distributed import gather

_LAST = 0x7FFFFFFF  # the largest int32


@dataclass
class Candidates:
    """The best items of each query: rows (q, k), their scores (q, k), the best left out (q,)."""

    rows: Tensor
    scores: Tensor
    left_out: Tensor


class Best:
    """Finds the k best items of each query from blocks of scores, of level ones the first.

    A score and the number of its item are kept as one whole number, so that the order in which the
    blocks come has no say in who is best.
    """

    def __init__(self, queries: int, items: int, k: int, device: torch.device) -> None:
        self.k, self.items = min(k, items), items
        least = torch.iinfo(torch.int64).min
        self.keys = torch.full((queries, self.k + 1), least, device=device)

    def see(self, block: Tensor, queries: slice | Tensor, items: Tensor) -> None:
        """Take the finite fp32 scores of some queries with some items."""
        bits = (block + 0.0).view(torch.int32)  # adding makes -0 level with 0
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


def _in_order(bits: Tensor) -> Tensor:
    """The bits of fp32 numbers as integers of the same order, and back."""
    return bits ^ ((bits >> 31) & _LAST)
