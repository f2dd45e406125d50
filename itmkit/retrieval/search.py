"""Find the best captions of images, and the best images of captions."""

from __future__ import annotations

import torch
from torch import Tensor

from itmkit.checks import InputError
from itmkit.retrieval.candidates import Best
from itmkit.retrieval.encode import evaluating
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.protocol import RetrievalModel
from itmkit.retrieval.score import check_at_least, pair_scores, score_block, second_stage


def best_captions(
    matcher: RetrievalModel,
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
        k: captions wanted an image; at most ``m`` are given.
        top_k: candidates put in the order of the blended score (see :func:`evaluate`), 0 for none;
            default ``matcher.rerank_top_k``.
        weight: share of the pair score, in [0, 1]; default ``matcher.rerank_weight``.
        chunk_size: at most this many images, captions or pairs a call of the matcher.

    Returns:
        Scores ``(n, k)`` fp32 and caption rows ``(n, k)`` int64. The first ``top_k`` scores of a
        row are blended, those behind them global.

    Raises:
        InputError: an argument out of its range, or a score that is not finite.
    """
    return _search(matcher, images, texts, k, top_k, weight, chunk_size, images_are_queries=True)


def best_images(
    matcher: RetrievalModel,
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
        k: images wanted a caption; at most ``n`` are given.
        top_k: as in :func:`best_captions`.
        weight: as in :func:`best_captions`.
        chunk_size: as in :func:`best_captions`.

    Returns:
        Scores ``(m, k)`` fp32 and image rows ``(m, k)`` int64, as in :func:`best_captions`.

    Raises:
        InputError: an argument out of its range, or a score that is not finite.
    """
    return _search(matcher, texts, images, k, top_k, weight, chunk_size, images_are_queries=False)


def _search(
    matcher: RetrievalModel,
    queries: Encoding,
    items: Encoding,
    k: int,
    top_k: int | None,
    weight: float | None,
    chunk_size: int,
    *,
    images_are_queries: bool,
) -> tuple[Tensor, Tensor]:
    """The k best items of each query, a block at a time."""
    check_at_least("k", k, 1)
    check_at_least("chunk_size", chunk_size, 1)
    top_k, weight = second_stage(matcher, top_k, weight)
    device = items.device
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(queries), chunk_size):
        part = queries[start : start + chunk_size]
        best = Best(len(part), len(items), max(k, top_k), matcher.device)
        with evaluating(matcher):
            asking = part.to(matcher.device)
            for first in range(0, len(items), chunk_size):
                offered = items[first : first + chunk_size].to(matcher.device)
                if images_are_queries:
                    block = score_block(matcher, asking, offered).float()
                else:
                    block = score_block(matcher, offered, asking).float().T
                wrong = (~block.isfinite()).nonzero()
                if len(wrong):
                    query, item = wrong[0].tolist()
                    raise InputError(
                        f"matcher.score must be finite, got {block[query, item].item()} "
                        f"for query {start + query} and item {first + item}"
                    )
                numbers = torch.arange(first, first + len(offered), device=block.device)
                best.see(block, slice(None), numbers)
        candidates = best.found(device)
        values, rows = candidates.scores, candidates.rows
        if top_k:
            head = rows[:, :top_k]
            own = torch.arange(len(part), device=device)[:, None].expand_as(head)
            images, texts = (part, items) if images_are_queries else (items, part)
            sides = (own, head) if images_are_queries else (head, own)
            pairs = torch.stack([side.ravel() for side in sides], 1)
            second = pair_scores(matcher, images, texts, pairs, chunk_size=chunk_size)
            blended = (1 - weight) * values[:, :top_k] + weight * second.view_as(head)
            blended, order = blended.sort(dim=1, descending=True, stable=True)
            values = torch.cat([blended, values[:, top_k:]], 1)
            rows = torch.cat([head.gather(1, order), rows[:, top_k:]], 1)
        found.append((values[:, :k], rows[:, :k]))
    return torch.cat([values for values, _ in found]), torch.cat([rows for _, rows in found])
