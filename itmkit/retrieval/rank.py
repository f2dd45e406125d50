"""Score a gallery, re-rank the best candidates, and count ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from itmkit.metrics.functional import cross_modal_recall, recall_from_ranks, retrieval_ranks
from itmkit.retrieval.encode import Gallery, evaluating
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.protocol import RetrievalModel

_SEARCH_ELEMENTS = 1 << 24


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
                block = matcher.score(rows, columns)
                if block.shape != (len(rows), len(columns)):
                    raise ValueError(
                        f"matcher.score must be ({len(rows)}, {len(columns)}), "
                        f"got {tuple(block.shape)}"
                    )
                scores[i : i + chunk_size, j : j + chunk_size] = block
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
) -> dict[str, float]:
    """Recall of a matcher on a gallery, with its second stage if it has one.

    First every pair gets its global score. With ``top_k > 0`` the ``top_k`` best candidates of each
    query, in each direction on its own, are put in the order of the blended score
    ``(1 − weight) · global + weight · pair``; all others stay behind them in global order. The
    candidates and scores never depend on which pairs match.

    A rank is the number of non-matching items in front of or level with the best match. A match
    whose global score is level with that of an item left out of the candidates is among them by
    luck only, and keeps its global rank.

    Args:
        matcher: the model to evaluate.
        gallery: encoded images and captions.
        relevance: ``(n, m)`` bool that says which pairs match, in place of equal ids.
        top_k: candidates a query, 0 for global scores only; default ``matcher.rerank_top_k``.
        weight: share of the pair score, in [0, 1]; default ``matcher.rerank_weight``.
        chunk_size: at most this many images, captions or pairs a call of the matcher.

    Returns:
        The dictionary of :func:`itmkit.metrics.functional.recall_from_ranks`.

    Raises:
        ValueError: an argument out of its range, a score that is not finite, or an image or caption
            without a match.
    """
    top_k, weight = _second_stage(matcher, top_k, weight)
    scores = score_matrix(matcher, gallery.images, gallery.texts, chunk_size=chunk_size)
    result = cross_modal_recall(
        scores, gallery.image_ids, gallery.text_image_ids, relevance=relevance
    )
    if top_k == 0:
        return result
    if relevance is None:
        relevance = gallery.image_ids[:, None] == gallery.text_image_ids[None]
    relevance = relevance.to(scores.device)
    captions, photos = _candidates(scores, top_k), _candidates(scores.T, top_k)
    m = len(gallery.texts)
    keys, places = torch.cat(
        [
            (torch.arange(len(scores), device=scores.device)[:, None] * m + captions.rows).ravel(),
            (photos.rows * m + torch.arange(m, device=scores.device)[:, None]).ravel(),
        ]
    ).unique(return_inverse=True)
    pairs = torch.stack([keys // m, keys % m], 1)
    second = pair_scores(matcher, gallery.images, gallery.texts, pairs, chunk_size=chunk_size)
    for_images, for_texts = second[places].split([captions.rows.numel(), photos.rows.numel()])
    return recall_from_ranks(
        _reranked(scores, relevance, captions, for_images.view_as(captions.rows), weight),
        _reranked(scores.T, relevance.T, photos, for_texts.view_as(photos.rows), weight),
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


def _candidates(scores: Tensor, k: int) -> _Candidates:
    """The k best columns of each row, found for a bounded number of rows at a time."""
    queries, items = scores.shape
    k = min(k, items)
    step = max(1, _SEARCH_ELEMENTS // items)
    parts = [scores[i : i + step].topk(min(k + 1, items), dim=1) for i in range(0, queries, step)]
    values = torch.cat([part.values for part in parts])
    rows = torch.cat([part.indices for part in parts])
    left_out = values[:, k] if k < items else values.new_full((queries,), -torch.inf)
    return _Candidates(rows[:, :k], values[:, :k], left_out)


def _reranked(
    scores: Tensor, relevant: Tensor, candidates: _Candidates, second: Tensor, weight: float
) -> Tensor:
    """Ranks of the rows' best matches after the candidates took the order of the blended score."""
    blended = (1 - weight) * candidates.scores + weight * second
    match = relevant.gather(1, candidates.rows)
    secure = match & (candidates.scores > candidates.left_out[:, None])
    best = blended.masked_fill(~secure, -torch.inf).amax(1, keepdim=True)
    inside = ((blended >= best) & ~match).sum(1)
    return torch.where(secure.any(1), inside, retrieval_ranks(scores, relevant, dim=1))


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
    """The k best items of each query, a bounded number of queries at a time."""
    _check_at_least("k", k, 1)
    top_k, weight = _second_stage(matcher, top_k, weight)
    step = max(1, _SEARCH_ELEMENTS // len(items))
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        images, texts = (part, items) if images_are_queries else (items, part)
        scores = score_matrix(matcher, images, texts, chunk_size=chunk_size)
        scores = scores if images_are_queries else scores.T
        wrong = (~scores.isfinite()).nonzero()
        if len(wrong):
            query, item = wrong[0].tolist()
            raise ValueError(
                f"matcher.score must be finite, got {scores[query, item].item()} "
                f"for query {start + query} and item {item}"
            )
        best = _candidates(scores, max(k, top_k))
        values, rows = best.scores, best.rows
        if top_k:
            head = rows[:, :top_k]
            own = torch.arange(len(part), device=rows.device)[:, None].expand_as(head)
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
