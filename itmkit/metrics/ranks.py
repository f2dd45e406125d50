"""Ranks in both directions from scores that are computed tile by tile."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, product
from typing import NamedTuple

import torch
from torch import Tensor

from itmkit.chunks import chunks
from itmkit.distributed import gather, rank, world_size
from itmkit.precision import at_least_float32

_TOLERANCE = 16  # times eps: more than products of unit vectors differ by when summed another way
_SAMPLE = 128  # about so many queries, evenly spread, are ranked without a tolerance too


@dataclass(frozen=True)
class Ranks:
    """Ranks of the best match of each query.

    Args:
        ranks: ``(q,)`` int64, scores tied with the best match being as good as it.
        exact: ``(q,)`` int64, the same without a tolerance; -1 where it was not counted.
        best: ``(q,)`` the score of the best match, fp32 or fp64; −∞ where there is none.
    """

    ranks: Tensor
    exact: Tensor
    best: Tensor

    @property
    def decided_by_ties(self) -> float:
        """Share of the queries whose rank the tolerance decides."""
        counted = self.exact >= 0
        return (self.ranks != self.exact)[counted].float().mean().item()

    def __getitem__(self, queries: Tensor) -> Ranks:
        """The ranks of some queries."""
        return Ranks(self.ranks[queries], self.exact[queries], self.best[queries])


def tied_from(best: Tensor) -> Tensor:
    r"""The least score that is tied with a best score: the one rule of all ranks.

    .. math:: S_{best} - 16\, \varepsilon \max(1, |S_{best}|)

    with ε of the dtype of the scores, but of float32 for half precision: its 16 ε would be 0.125
    (bfloat16), wider than most scores are apart. Equal items get scores that differ in their last
    bits, as matrix products of different shapes add up in different orders; no rank may depend on
    that.

    Returns:
        The least scores, in float32 or float64.

    Example:
        >>> best = torch.tensor([0.5, 1024.0])
        >>> best - tied_from(best)
        tensor([1.9073e-06, 1.9531e-03])
    """
    best = at_least_float32(best)
    return best - _TOLERANCE * torch.finfo(best.dtype).eps * best.abs().clamp(min=1)


def tie_groups(scores: Tensor) -> Tensor:
    """For each of sorted scores the one that it is tied with: the best that is left.

    Args:
        scores: ``(q, k)``, the largest of each row first.

    Example:
        >>> tie_groups(torch.tensor([[2, 1 + 1e-6, 1]])).tolist()
        [[2.0, 1.000000953674..., 1.000000953674...]]
    """
    best = scores.clone()
    near = scores[:, 1:] >= tied_from(scores[:, :-1])
    for place in near.any(0).nonzero()[:, 0].tolist():
        tied = scores[:, place + 1] >= tied_from(best[:, place])
        best[:, place + 1] = best[:, place].where(tied, scores[:, place + 1])
    return best


ScoreTiles = Callable[[slice, Sequence[slice]], Iterable[Tensor]]
"""Computes the scores of some columns with one part of the rows after the other."""


class _Tile(NamedTuple):
    rows: slice
    columns: slice
    pairs: Tensor  # (p, 2), those that match


@torch.no_grad()
def ranks_by_tile(
    score: ScoreTiles,
    shape: tuple[int, int],
    pairs: Tensor,
    tile: tuple[int, int],
    *,
    shared: bool = False,
) -> tuple[Ranks, Ranks]:
    r"""Ranks of each row's and of each column's best match, without all scores at once.

    .. math::
        r_q = \#\{\, j \text{ not matching } q : S_{qj} \ge
            \mathrm{tied\_from}(\max_{p \text{ matching } q} S_{qp}) \,\}

    Every score is computed once. Tiles with a match come first and are kept until the best match
    of every row and column is known; then all tiles are counted. Where matches are near the
    diagonal (see :func:`near_diagonal`) at most about ``n · width + m · height`` scores are kept.

    Args:
        score: given some columns and a list of parts of the rows, computes the tile of each part
            in turn, finite and floating point, all of one dtype. It is called at most twice for
            the same columns, so it can prepare them once for many tiles.
        shape: ``(n, m)``, of all scores.
        pairs: ``(p, 2)`` int64, a row and a column that match, each pair once.
        tile: height and width of a tile, the last ones being smaller; below 2²⁴.
        shared: each process computes its share of the tiles, which are at least as many as the
            processes; all make the same call and get the same ranks.

    Returns:
        :class:`Ranks` of the ``n`` rows and of the ``m`` columns, on the device of the scores;
        those of rows and columns without a match mean nothing.

    Example:
        >>> scores = torch.tensor([[0.9, 0.1, 0.9], [0.2, 0.8, 0.1]])
        >>> pairs = torch.tensor([[0, 0], [1, 1], [0, 2]])
        >>> def score(columns, parts):
        ...     return (scores[rows, columns] for rows in parts)
        >>> rows, columns = ranks_by_tile(score, (2, 3), pairs, (1, 2))
        >>> rows.ranks.tolist(), columns.ranks.tolist()
        ([0, 0], [0, 0, 0])
    """
    (n, m), (height, width) = shape, tile
    grid = [(r, c) for c, r in product(chunks(m, width), chunks(n, height))]
    numbers = pairs[:, 1] // width * -(-n // height) + pairs[:, 0] // height
    counts = numbers.bincount(minlength=len(grid)).tolist()
    matches = pairs[numbers.argsort()].split(counts)
    tiles = [_Tile(r, c, own) for (r, c), own in zip(grid, matches, strict=True)]
    if shared:
        tiles = tiles[rank() :: world_size()]

    # The first tile is kept in any case, for the dtype and the device of the scores.
    with_match = [one for i, one in enumerate(tiles) if len(one.pairs) or i == 0]
    without = [one for one in tiles[1:] if not len(one.pairs)]
    kept = deque(_scored(score, with_match))
    device = kept[0][1].device
    pairs = torch.cat([one.pairs for one, _ in kept]).to(device)
    match = torch.cat([_at_pairs(one, block) for one, block in kept])
    rows, columns = pairs.unbind(1)
    none = match.new_full((), -torch.inf)
    row_best = none.repeat(n).scatter_reduce_(0, rows, match, "amax")
    column_best = none.repeat(m).scatter_reduce_(0, columns, match, "amax")
    if shared:
        row_best, column_best = (gather(best[None]).amax(0) for best in (row_best, column_best))

    by_row, by_column = _Count(row_best, rows, match), _Count(column_best, columns, match)
    # Comparing into fp32 and summing that is the fastest count; it is exact below 2²⁴.
    buffer = torch.empty(min(n, height), min(m, width), device=device)
    drained = (kept.popleft() for _ in range(len(kept)))  # a tile is dropped once it is counted
    for one, block in chain(drained, _scored(score, without)):
        least = buffer[: block.shape[0], : block.shape[1]]
        by_row.add(block, one.rows, least)
        by_column.add(block.T, one.columns, least.T)
    return by_row.result(shared=shared), by_column.result(shared=shared)


def _scored(score: ScoreTiles, tiles: Iterable[_Tile]) -> Iterator[tuple[_Tile, Tensor]]:
    """Each tile with its scores; the tiles of the same columns follow each other."""
    for columns, group in groupby(tiles, lambda one: one.columns):
        own = list(group)
        yield from zip(own, score(columns, [one.rows for one in own]), strict=True)


def _at_pairs(tile: _Tile, block: Tensor) -> Tensor:
    """The scores of the pairs that match, of a tile with these scores, in float32 or float64."""
    corner = tile.pairs.new_tensor([tile.rows.start, tile.columns.start])
    rows, columns = (tile.pairs - corner).to(block.device).unbind(1)
    return at_least_float32(block[rows, columns])


class _Count:
    """Counts the scores of each query that are no less than, or tied with, its best match.

    Args:
        best: ``(q,)`` scores of the best matches.
        queries: ``(p,)`` the query of each matching pair.
        match: ``(p,)`` its score.
    """

    def __init__(self, best: Tensor, queries: Tensor, match: Tensor) -> None:
        self.step = max(1, len(best) // _SAMPLE)
        self.match = best
        self.best, self.least = best[:: self.step], tied_from(best)
        # Matches are counted with the rest, so they are taken off beforehand.
        self.ranks, self.exact = (
            -queries[match >= least[queries]].bincount(minlength=len(best))
            for least in (self.least, best)
        )
        self.exact = self.exact[:: self.step]

    def add(self, block: Tensor, part: slice, buffer: Tensor) -> None:
        """Count scores, a row each of the queries ``part``, in a buffer of their shape."""
        self.ranks[part] += torch.ge(block, self.least[part, None], out=buffer).sum(1).long()
        place = slice(-(-part.start // self.step), -(-part.stop // self.step))
        block = block[place.start * self.step - part.start :: self.step]
        exact = torch.ge(block, self.best[place, None], out=buffer[: len(block)])
        self.exact[place] += exact.sum(1).long()

    def result(self, *, shared: bool) -> Ranks:
        """The ranks, those of all processes added up if they share the work."""
        counts = self.ranks, self.exact
        ranks, exact = (gather(count[None]).sum(0) for count in counts) if shared else counts
        spread = torch.full_like(ranks, -1)
        spread[:: self.step] = exact
        return Ranks(ranks, spread, self.match)


def warn_of_ties(i2t: Ranks, t2i: Ranks) -> None:
    """Warn, once among the processes, if ties within the tolerance decide more than 1 % of ranks.

    Args:
        i2t: of the images.
        t2i: of the captions.
    """
    shares = i2t.decided_by_ties, t2i.decided_by_ties
    if rank() == 0 and max(shares) > 0.01:
        warnings.warn(
            f"the rank of {shares[0]:.1%} of the images and of {shares[1]:.1%} of the captions is "
            "decided by ties: others score the same as their best match but for rounding, and "
            "count against them. Are there duplicates, or scores that hardly differ?",
            UserWarning,
            stacklevel=2,
        )


def matching_pairs(row_ids: Tensor, column_ids: Tensor) -> Tensor:
    """All pairs of a row and a column with the same id.

    Args:
        row_ids: ``(n,)`` integers.
        column_ids: ``(m,)`` integers.

    Returns:
        ``(p, 2)`` int64, in the order of the rows, on the device of ``row_ids``.

    Example:
        >>> matching_pairs(torch.tensor([7, 5]), torch.tensor([5, 7, 5])).tolist()
        [[0, 1], [1, 0], [1, 2]]
    """
    row_ids = row_ids.long()
    ordered, order = column_ids.to(row_ids.device).long().sort(stable=True)
    start = torch.searchsorted(ordered, row_ids)
    count = torch.searchsorted(ordered, row_ids, right=True) - start
    rows = torch.arange(len(row_ids), device=row_ids.device).repeat_interleave(count)
    place = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[rows]
    return torch.stack([rows, order[start[rows] + place]], 1)


def has_match(rows: Tensor, count: int) -> Tensor:
    """Which of ``count`` rows are among those of the pairs that match; the others are not queries.

    Returns:
        ``(count,)`` bool.

    Example:
        >>> has_match(torch.tensor([0, 2, 2]), 4).tolist()
        [True, False, True, False]
    """
    return rows.bincount(minlength=count) > 0


def near_diagonal(pairs: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """An order of the columns in which they follow the rows that they match.

    Returns:
        The numbers of the columns in that order, ``(columns,)``, and the pairs after it.

    Example:
        >>> order, pairs = near_diagonal(torch.tensor([[0, 2], [1, 0], [1, 1]]), 3)
        >>> order.tolist(), pairs.tolist()
        ([2, 0, 1], [[0, 0], [1, 1], [1, 2]])
    """
    first = pairs.new_full((columns,), columns).scatter_reduce(0, pairs[:, 1], pairs[:, 0], "amin")
    order = first.argsort(stable=True)
    return order, torch.stack([pairs[:, 0], order.argsort()[pairs[:, 1]]], 1)
