"""Score a gallery, re-rank the best candidates, and count ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from itmkit.checks import InputError, type_of
from itmkit.distributed import gather, rank, world_size
from itmkit.metrics.functional import recall_of_queries, relevant_pairs
from itmkit.metrics.ranks import Ranks, check_finite, near_diagonal, ranks_by_tile, tied_from
from itmkit.retrieval.candidates import Best, Candidates
from itmkit.retrieval.encode import Gallery, evaluating
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.protocol import RetrievalModel
from itmkit.retrieval.score import check_at_least, pair_scores, score_block, second_stage


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

    A rank is the number of non-matching items in front of, or tied with, the best match; ties are
    those of :func:`itmkit.metrics.functional.retrieval_ranks`. A match whose global score is tied
    with that of an item left out of the candidates is among them by chance only, and keeps its
    global rank. An image without captions is searched but no query.

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
        ValueError: an argument out of its range, a score that is not finite, or a caption without
            a match.
    """
    if not isinstance(gallery, Gallery):
        raise InputError(f"gallery is {type_of(gallery)}; expected a Gallery, as encode gives it")
    top_k, weight = second_stage(matcher, top_k, weight)
    check_at_least("chunk_size", chunk_size, 1)
    images, texts = gallery.images, gallery.texts
    n, m = len(images), len(texts)
    shared = shared and -(-n // chunk_size) * -(-m // chunk_size) >= world_size()  # blocks
    matches = relevant_pairs(gallery.image_ids, gallery.text_image_ids, relevance, (n, m))
    matches = matches.to(images.device)
    order, ordered_matches = near_diagonal(matches, m)
    in_order = bool((order[1:] > order[:-1]).all())  # then blocks are views, not copies
    for_images = Best(n, m, top_k, matcher.device)
    for_texts = Best(m, n, top_k, matcher.device)

    @lru_cache(maxsize=1)  # the blocks of a column follow each other
    def column(start: int, stop: int) -> tuple[Tensor, Encoding]:
        numbers = order[start:stop]
        part = texts[start:stop] if in_order else texts[numbers]
        return numbers.to(matcher.device), part.to(matcher.device)

    def score(r: slice, c: slice) -> Tensor:
        numbers, part = column(c.start, c.stop)
        block = score_block(matcher, images[r].to(matcher.device), part).float()
        check_finite(block, r, numbers)
        if top_k:
            for_images.see(block, r, numbers)
            for_texts.see(block.T, numbers, torch.arange(r.start, r.stop, device=block.device))
        return block

    with evaluating(matcher):
        i2t, ordered_t2i = ranks_by_tile(
            score, (n, m), ordered_matches, (chunk_size, chunk_size), shared=shared
        )
    place = order.argsort().to(ordered_t2i.ranks.device)
    t2i = Ranks(ordered_t2i.ranks[place], ordered_t2i.exact[place])
    if top_k == 0:
        return recall_of_queries(i2t, t2i, matches)

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
    i2t = _reranked(captions, second[for_captions], match[for_captions], weight, i2t)
    t2i = _reranked(photos, second[for_photos], match[for_photos], weight, t2i)
    return recall_of_queries(i2t, t2i, matches)


def _reranked(
    candidates: Candidates, second: Tensor, match: Tensor, weight: float, ranks: Ranks
) -> Ranks:
    """Ranks of the best matches after the candidates took the order of the blended score.

    Args:
        candidates: of ``q`` queries.
        second: ``(q · k,)``, their pair scores.
        match: ``(q · k,)`` bool, which of them match.
        weight: share of the pair score.
        ranks: by global scores.
    """
    blended = (1 - weight) * candidates.scores + weight * second.view_as(candidates.rows)
    match = match.view_as(candidates.rows)
    left_out = candidates.left_out[:, None]

    def count(secure: Tensor, least: Callable[[Tensor], Tensor], ranks: Tensor) -> Tensor:
        best = blended.masked_fill(~secure, -torch.inf).amax(1, keepdim=True)
        inside = ((blended >= least(best)) & ~match).sum(1)
        return torch.where(secure.any(1), inside, ranks.to(inside.device))

    secure = match & (tied_from(candidates.scores) > left_out)
    exact = count(match & (candidates.scores > left_out), lambda best: best, ranks.exact)
    return Ranks(count(secure, tied_from, ranks.ranks), exact)
