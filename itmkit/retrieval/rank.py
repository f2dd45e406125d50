"""Score a gallery, re-rank the best candidates, and count ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from itmkit.distributed import gather, rank, world_size
from itmkit.metrics.functional import recall_from_ranks, relevant_pairs
from itmkit.metrics.ranks import check_finite, near_diagonal, ranks_by_tile
from itmkit.retrieval.encode import Gallery, evaluating
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.protocol import RetrievalModel

_LAST = 0x7FFFFFFF  # the largest int32


def score_matrix(
    matcher: RetrievalModel, images: Encoding, texts: Encoding, *, chunk_size: int = 256
) -> Tensor:
    """Global scores of all images against all captions, computed block by block.

    Args:
        matcher: the model whose ``score`` is used, in evaluation mode.
        images: ``n`` encoded images.
        texts: ``m`` encoded captions.
        chunk_size: at most this many images and captions a block.

    Returns:
        ``(n, m)`` fp32 on the device of ``images``.

    Raises:
        ValueError: ``chunk_size`` below 1, or a score of the wrong shape.
    """
    _check_at_least("chunk_size", chunk_size, 1)
    scores = torch.empty(len(images), len(texts), device=images.device)
    with evaluating(matcher):
        for i in range(0, len(images), chunk_size):
            rows = images[i : i + chunk_size].to(matcher.device)
            for j in range(0, len(texts), chunk_size):
                columns = texts[j : j + chunk_size].to(matcher.device)
                scores[i : i + chunk_size, j : j + chunk_size] = _block(matcher, rows, columns)
    return scores


def pair_scores(
    matcher: RetrievalModel,
    images: Encoding,
    texts: Encoding,
    pairs: Tensor,
    *,
    chunk_size: int = 256,
) -> Tensor:
    """Second-stage scores of chosen pairs, a bounded number at a time.

    Args:
        matcher: the model whose ``rerank`` is used, in evaluation mode.
        images: ``n`` encoded images.
        texts: ``m`` encoded captions.
        pairs: ``(p, 2)`` int64, image row and caption row.
        chunk_size: at most this many pairs a call.

    Returns:
        ``(p,)`` fp32 on the device of ``images``.

    Raises:
        ValueError: ``chunk_size`` below 1, or a score that has the wrong shape or is not finite.
    """
    _check_at_least("chunk_size", chunk_size, 1)
    scores = torch.empty(len(pairs), device=images.device)
    with evaluating(matcher):
        for start in range(0, len(pairs), chunk_size):
            part = pairs[start : start + chunk_size]
            rows, local_rows = part[:, 0].unique(return_inverse=True)
            columns, local_columns = part[:, 1].unique(return_inverse=True)
            block = matcher.rerank(
                images[rows].to(matcher.device),
                texts[columns].to(matcher.device),
                torch.stack([local_rows, local_columns], 1).to(matcher.device),
            )
            if block.shape != (len(part),):
                raise ValueError(f"matcher.rerank must be ({len(part)},), got {tuple(block.shape)}")
            scores[start : start + chunk_size] = block
    wrong = (~scores.isfinite()).nonzero()
    if len(wrong):
        row, column = pairs[int(wrong[0])].tolist()
        raise ValueError(
            f"matcher.rerank must be finite, got {scores[int(wrong[0])].item()} "
            f"for image row {row} and caption row {column}"
        )
    return scores


def evaluate(
    matcher: RetrievalModel,
    gallery: Gallery,
    *,
    relevance: Tensor | None = None,
    top_k: int | None = None,
    weight: float | None = None,
    chunk_size: int = 256,
    shared: bool = False,
) -> dict[str, float]:
    """Recall of a matcher on a gallery, with its second stage if it has one.

    First every pair gets its global score. With ``top_k > 0`` the ``top_k`` best candidates of each
    query, in each direction on its own, are put in the order of the blended score
    ``(1 − weight) · global + weight · pair``; all others stay behind them in global order. The
    candidates and scores never depend on which pairs match.

    A rank is the number of non-matching items in front of or level with the best match. A match
    whose global score is level with that of an item left out of the candidates is among them for
    its place in the gallery only (of level items the first are taken), and keeps its global rank.

    The scores are never stored whole: blocks are counted and dropped, but for those that hold a
    match. With ids, about ``(n + m) · chunk_size`` scores are kept at most. Scores are compared and
    counted where the matcher is.

    Args:
        matcher: the model to evaluate.
        gallery: encoded images and captions.
        relevance: ``(n, m)`` bool that says which pairs match, in place of equal ids.
        top_k: candidates a query, 0 for global scores only; default ``matcher.rerank_top_k``.
        weight: share of the pair score, in [0, 1]; default ``matcher.rerank_weight``.
        chunk_size: at most this many images, captions or pairs a call of the matcher.
        shared: the processes share the work; all call this alike, and get the same recall.

    Returns:
        The dictionary of :func:`itmkit.metrics.functional.recall_from_ranks`.

    Raises:
        ValueError: an argument out of its range, a score that is not finite, or an image or caption
            without a match.
    """
    top_k, weight = _second_stage(matcher, top_k, weight)
    _check_at_least("chunk_size", chunk_size, 1)
    images, texts = gallery.images, gallery.texts
    n, m = len(images), len(texts)
    shared = shared and -(-n // chunk_size) * -(-m // chunk_size) >= world_size()  # blocks
    matches = relevant_pairs(gallery.image_ids, gallery.text_image_ids, relevance, (n, m))
    matches = matches.to(images.device)
    order, ordered_matches = near_diagonal(matches, m)
    in_order = bool((order[1:] > order[:-1]).all())  # then blocks are views, not copies
    for_images = _Best(n, m, top_k, matcher.device)
    for_texts = _Best(m, n, top_k, matcher.device)

    @lru_cache(maxsize=1)  # the blocks of a column follow each other
    def column(start: int, stop: int) -> tuple[Tensor, Encoding]:
        numbers = order[start:stop]
        part = texts[start:stop] if in_order else texts[numbers]
        return numbers.to(matcher.device), part.to(matcher.device)

    def score(r: slice, c: slice) -> Tensor:
        numbers, part = column(c.start, c.stop)
        block = _block(matcher, images[r].to(matcher.device), part).float()
        check_finite(block, r, numbers)
        if top_k:
            for_images.see(block, r, numbers)
            for_texts.see(block.T, numbers, torch.arange(r.start, r.stop, device=block.device))
        return block

    with evaluating(matcher):
        i2t, ordered_t2i = ranks_by_tile(
            score, (n, m), ordered_matches, (chunk_size, chunk_size), shared=shared
        )
    t2i = torch.empty_like(ordered_t2i).index_copy_(0, order.to(i2t.device), ordered_t2i)
    if top_k == 0:
        return recall_from_ranks(i2t, t2i)

    if shared:
        for_images.share()
        for_texts.share()
    captions, photos = for_images.found(images.device), for_texts.found(images.device)
    keys, places = torch.cat(
        [
            (torch.arange(n, device=images.device)[:, None] * m + captions.rows).ravel(),
            (photos.rows * m + torch.arange(m, device=images.device)[:, None]).ravel(),
        ]
    ).unique(return_inverse=True)
    pairs = torch.stack([keys // m, keys % m], 1)
    if shared:  # whole chunks, so that each pair is scored beside the same others
        share = -(-len(pairs) // (chunk_size * world_size())) * chunk_size
        own = pairs[rank() * share : (rank() + 1) * share]
        second = pair_scores(matcher, images, texts, own, chunk_size=chunk_size)
        second = gather(second.to(matcher.device)).to(images.device)
    else:
        second = pair_scores(matcher, images, texts, pairs, chunk_size=chunk_size)
    match = torch.isin(keys, matches[:, 0] * m + matches[:, 1])
    for_captions, for_photos = places.split([captions.rows.numel(), photos.rows.numel()])
    return recall_from_ranks(
        _reranked(captions, second[for_captions], match[for_captions], weight, i2t),
        _reranked(photos, second[for_photos], match[for_photos], weight, t2i),
    )


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
        ValueError: an argument out of its range, or a score that is not finite.
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
        ValueError: an argument out of its range, or a score that is not finite.
    """
    return _search(matcher, texts, images, k, top_k, weight, chunk_size, images_are_queries=False)


@dataclass
class _Candidates:
    """The best items of each query: rows (q, k), their scores (q, k), the best left out (q,)."""

    rows: Tensor
    scores: Tensor
    left_out: Tensor


class _Best:
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

    def found(self, device: torch.device) -> _Candidates:
        """The best of all that was seen, best first."""
        keys = self.keys.to(device)
        rows = _LAST - (keys & 0xFFFFFFFF)
        scores = _in_order((keys >> 32).int()).view(torch.float32)
        left_out = scores[:, self.k]
        if self.k == self.items:
            left_out = torch.full_like(left_out, -torch.inf)
        return _Candidates(rows[:, : self.k], scores[:, : self.k], left_out)


def _in_order(bits: Tensor) -> Tensor:
    """The bits of fp32 numbers as integers of the same order, and back."""
    return bits ^ ((bits >> 31) & _LAST)


def _reranked(
    candidates: _Candidates, second: Tensor, match: Tensor, weight: float, ranks: Tensor
) -> Tensor:
    """Ranks of the best matches after the candidates took the order of the blended score.

    Args:
        candidates: of ``q`` queries.
        second: ``(q · k,)``, their pair scores.
        match: ``(q · k,)`` bool, which of them match.
        weight: share of the pair score.
        ranks: ``(q,)`` by global scores.
    """
    blended = (1 - weight) * candidates.scores + weight * second.view_as(candidates.rows)
    match = match.view_as(candidates.rows)
    secure = match & (candidates.scores > candidates.left_out[:, None])
    best = blended.masked_fill(~secure, -torch.inf).amax(1, keepdim=True)
    inside = ((blended >= best) & ~match).sum(1)
    return torch.where(secure.any(1), inside, ranks.to(inside.device))


def _block(matcher: RetrievalModel, images: Encoding, texts: Encoding) -> Tensor:
    """Scores of a block of images and captions, of the right shape."""
    block = matcher.score(images, texts)
    if block.shape != (len(images), len(texts)):
        raise ValueError(
            f"matcher.score must be ({len(images)}, {len(texts)}), got {tuple(block.shape)}"
        )
    return block


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
    _check_at_least("k", k, 1)
    _check_at_least("chunk_size", chunk_size, 1)
    top_k, weight = _second_stage(matcher, top_k, weight)
    device = items.device
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(queries), chunk_size):
        part = queries[start : start + chunk_size]
        best = _Best(len(part), len(items), max(k, top_k), matcher.device)
        with evaluating(matcher):
            asking = part.to(matcher.device)
            for first in range(0, len(items), chunk_size):
                offered = items[first : first + chunk_size].to(matcher.device)
                if images_are_queries:
                    block = _block(matcher, asking, offered).float()
                else:
                    block = _block(matcher, offered, asking).float().T
                wrong = (~block.isfinite()).nonzero()
                if len(wrong):
                    query, item = wrong[0].tolist()
                    raise ValueError(
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


def _second_stage(
    matcher: RetrievalModel, top_k: int | None, weight: float | None
) -> tuple[int, float]:
    """Number of candidates and weight of the pair score; without a weight, no candidates."""
    top_k = matcher.rerank_top_k if top_k is None else top_k
    weight = matcher.rerank_weight if weight is None else weight
    _check_at_least("top_k", top_k, 0)
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight}")
    return (top_k if weight > 0 else 0), weight


def _check_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
