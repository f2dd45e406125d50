"""Find the best captions of images, and the best images of captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from itmkit.checks import check_count, check_finite
from itmkit.chunks import chunks
from itmkit.metrics.ranks import tied_from
from itmkit.retrieval.blend import blend
from itmkit.retrieval.candidates import Best, FirstTied, tied_in_order
from itmkit.retrieval.encode import evaluating
from itmkit.retrieval.encoding import Encoding, check_encodings
from itmkit.retrieval.model import ScoringModel
from itmkit.retrieval.score import pair_scores, score_block, second_stage

_SPARE = 32  # candidates beyond those wanted, so that ties seldom need a second look


def best_captions(
    matcher: ScoringModel,
    images: Encoding,
    texts: Encoding,
    k: int,
    *,
    top_k: int | None = None,
    weight: float | None = None,
    chunk_size: int = 256,
) -> tuple[Tensor, Tensor]:
    """The best captions of each image, best first.

    Args:
        matcher: the model that ranks.
        images: ``n`` encoded images, the queries.
        texts: ``m`` encoded captions, the gallery.
        k: captions wanted per image; at most ``m`` are given.
        top_k: candidates put in the order of the blended score (see :func:`evaluate`), 0 for none;
            default ``matcher.rerank_top_k``.
        weight: share of the pair score, in [0, 1]; default ``matcher.rerank_weight``.
        chunk_size: at most this many images, captions or pairs per call of the matcher.

    Returns:
        Scores ``(n, k)`` fp32 and caption rows ``(n, k)`` int64. The first ``top_k`` scores of a
        row are blended, those behind them global. Items that are tied, as in
        :func:`itmkit.metrics.functional.retrieval_ranks`, come in the order of their rows; their
        scores may differ in the last bits.

    Raises:
        InputError: an argument out of its range, or a score that is not finite.
    """
    check_encodings(images=images, texts=texts)
    return _search(matcher, images, texts, k, top_k, weight, chunk_size, images_are_queries=True)


def best_images(
    matcher: ScoringModel,
    texts: Encoding,
    images: Encoding,
    k: int,
    *,
    top_k: int | None = None,
    weight: float | None = None,
    chunk_size: int = 256,
) -> tuple[Tensor, Tensor]:
    """The best images of each caption, best first.

    Args:
        matcher: the model that ranks.
        texts: ``m`` encoded captions, the queries.
        images: ``n`` encoded images, the gallery.
        k: images wanted per caption; at most ``n`` are given.
        top_k: as in :func:`best_captions`.
        weight: as in :func:`best_captions`.
        chunk_size: as in :func:`best_captions`.

    Returns:
        Scores ``(m, k)`` fp32 and image rows ``(m, k)`` int64, as in :func:`best_captions`.

    Raises:
        InputError: an argument out of its range, or a score that is not finite.
    """
    check_encodings(texts=texts, images=images)
    return _search(matcher, texts, images, k, top_k, weight, chunk_size, images_are_queries=False)


def _search(
    matcher: ScoringModel,
    queries: Encoding,
    items: Encoding,
    k: int,
    top_k: int | None,
    weight: float | None,
    chunk_size: int,
    *,
    images_are_queries: bool,
) -> tuple[Tensor, Tensor]:
    """The k best items of each query, block by block."""
    check_count(k=k, chunk_size=chunk_size)
    stage = second_stage(matcher, top_k, weight)
    top_k = stage.top_k
    if not len(queries) or not len(items):
        empty = torch.empty(len(queries), min(k, len(items)), device=items.device)
        return empty, empty.long()
    found: list[tuple[Tensor, Tensor]] = []
    for rows in chunks(len(queries), chunk_size):
        part = queries[rows]
        blocks = partial(
            _blocks,
            matcher,
            part,
            items,
            rows.start,
            chunk_size,
            images_are_queries=images_are_queries,
        )
        with evaluating(matcher):
            values, found_rows = _best(blocks, len(part), len(items), max(k, top_k), matcher.device)
        values, found_rows = values.to(items.device), found_rows.to(items.device)
        if top_k:
            head = found_rows[:, :top_k]
            own = torch.arange(len(part), device=items.device)[:, None].expand_as(head)
            images, texts = (part, items) if images_are_queries else (items, part)
            sides = (own, head) if images_are_queries else (head, own)
            pairs = torch.stack([side.ravel() for side in sides], 1)
            second = pair_scores(matcher, images, texts, pairs, chunk_size=chunk_size)
            blended = blend(
                values[:, :top_k],
                second.view_as(head),
                stage.weight,
                standardised=stage.standardised,
            )
            blended, order = blended.sort(dim=1, descending=True, stable=True)
            blended, head, _ = tied_in_order(blended, head.gather(1, order))
            values = torch.cat([blended, values[:, top_k:]], 1)
            found_rows = torch.cat([head, found_rows[:, top_k:]], 1)
        found.append((values[:, :k], found_rows[:, :k]))
    return torch.cat([values for values, _ in found]), torch.cat([rows for _, rows in found])


def _blocks(
    matcher: ScoringModel,
    queries: Encoding,
    items: Encoding,
    start: int,
    chunk_size: int,
    *,
    images_are_queries: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Finite fp32 scores of queries, from number ``start`` on, and the numbers of the items."""
    queries = queries.to(matcher.device)

    def block(part: slice) -> Tensor:
        offered = items[part].to(matcher.device)
        if images_are_queries:
            scores = score_block(matcher, queries, offered).float()
        else:
            scores = score_block(matcher, offered, queries).float().T
        check_finite(
            scores,
            lambda query, item: (
                f"matcher.score of query {start + query} and item {part.start + item}"
            ),
        )
        return scores

    for part in chunks(len(items), chunk_size):
        scores = block(part)
        yield scores, torch.arange(part.start, part.stop, device=scores.device)


def _best(
    blocks: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    queries: int,
    items: int,
    k: int,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Scores and rows of the k best items of each query, tied ones in the order of their rows.

    Args:
        blocks: makes an iterator over all scores ``(queries, c)`` and the numbers of the items.
        queries: number of queries.
        items: number of items.
        k: items wanted per query.
        device: where the scores are.
    """
    best = Best(queries, items, k + _SPARE, device)
    for block, numbers in blocks():
        best.see(block, slice(None), numbers)
    candidates = best.found(device)
    values, rows, tied_with = tied_in_order(candidates.scores, candidates.rows)
    values, rows, tied_with = values[:, :k], rows[:, :k], tied_with[:, :k]
    most = tied_with[:, -1]
    more = candidates.left_out >= tied_from(most)
    if more.any():  # more items are tied than were kept: look for the first of them
        first = FirstTied(tied_from(most), most, tied_with.shape[1])
        for block, numbers in blocks():
            first.see(block, numbers)
        last = more[:, None] & (tied_with == most[:, None])
        place = (last.cumsum(1) - 1).clamp(min=0)
        tied_values, tied_rows = first.found()
        values = tied_values.gather(1, place).where(last, values)
        rows = tied_rows.gather(1, place).where(last, rows)
    return values, rows
