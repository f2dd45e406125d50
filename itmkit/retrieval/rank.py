"""Score a gallery, re-rank the best candidates, and count ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from itmkit.checks import InputError, check_count, check_finite, type_of
from itmkit.distributed import gather, rank, world_size
from itmkit.metrics.judgements import Judgements, Matches, find_matches
from itmkit.metrics.list_metrics import (
    ListMetrics,
    items_ahead,
    metrics_of_lists,
    order_of_ties,
    wanted_items,
)
from itmkit.metrics.protocol import Protocol, find_protocol
from itmkit.metrics.query_ranks import BestItems, QueryRanks, query_ranks, recall_of_folds
from itmkit.metrics.ranks import Ranks, near_diagonal, ranks_by_tile, tied_from
from itmkit.retrieval.blend import blend
from itmkit.retrieval.candidates import Best, Candidates
from itmkit.retrieval.encode import Gallery, evaluating
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.model import ScoringModel
from itmkit.retrieval.score import SecondStage, pair_scores, score_block, second_stage


def evaluate(
    matcher: ScoringModel,
    gallery: Gallery,
    *,
    protocol: Protocol | str | int | None = None,
    relevance: Tensor | Judgements | None = None,
    top_k: int | None = None,
    weight: float | None = None,
    chunk_size: int = 256,
    lists: bool | None = None,
    shared: bool = False,
) -> dict[str, float]:
    """Recall of a matcher on a gallery, with its second stage if it has one.

    The ranks are those of :func:`rank_queries`, which has the arguments described.

    Returns:
        The dictionary of :func:`itmkit.metrics.query_ranks.recall_of_folds`.

    Raises:
        InputError: as :func:`rank_queries`.
    """
    return recall_of_folds(
        rank_queries(
            matcher,
            gallery,
            protocol=protocol,
            relevance=relevance,
            top_k=top_k,
            weight=weight,
            chunk_size=chunk_size,
            lists=lists,
            shared=shared,
        )
    )


def rank_queries(
    matcher: ScoringModel,
    gallery: Gallery,
    *,
    protocol: Protocol | str | int | None = None,
    relevance: Tensor | Judgements | None = None,
    top_k: int | None = None,
    weight: float | None = None,
    chunk_size: int = 256,
    keep: int = 0,
    lists: bool | None = None,
    shared: bool = False,
) -> list[QueryRanks]:
    """Ranks of the best match of every image and of every caption, fold by fold.

    First every pair gets its global score. With ``top_k > 0`` the ``top_k`` best candidates of each
    query, in each direction on its own, are put in the order of the blended score
    ``(1 − weight) · global + weight · pair``; all others stay behind them in global order. The
    candidates and scores never depend on which pairs match.

    A rank is the number of non-matching items in front of, or tied with, the best match; ties are
    those of :func:`itmkit.metrics.functional.retrieval_ranks`. A match whose global score is tied
    with that of an item outside the candidates is a candidate by chance only, and keeps its global
    rank. An image without captions is searched but is not a query.

    The scores are never stored whole: blocks are counted and dropped, but for those that hold a
    match. With ids, about ``(n + m) · chunk_size`` scores are kept at most. Scores are compared and
    counted where the matcher is.

    Args:
        matcher: the model to evaluate.
        gallery: encoded images and captions; for folds, the images in the order of the split.
        protocol: which of them are searched together: a name of
            :data:`itmkit.metrics.PROTOCOLS`, or a number of folds; None for all.
        relevance: which pairs match, in place of equal ids: ``(n, m)`` bool; ``(n, m)`` grades, of
            which all above 0 match; or :class:`itmkit.metrics.Judgements`.
        top_k: candidates per query, 0 for global scores only; default ``matcher.rerank_top_k``.
        weight: share of the pair score, in [0, 1]; default ``matcher.rerank_weight``.
        chunk_size: at most this many images, captions or pairs per call of the matcher.
        keep: how many of the best items of each query, and of its hardest negatives, are kept;
            the ranks then hold them, see :class:`itmkit.metrics.BestItems`.
        lists: whether nDCG@10, R-Precision and mAP@R are computed too, see
            :class:`itmkit.metrics.ListMetrics`; None: where there are grades or judgements.
        shared: the processes share the work; all make the same call and get the same ranks.

    Returns:
        The ranks of each fold; of one, where the whole gallery is searched.

    Raises:
        InputError: an argument out of its range, a gallery that does not fit the protocol, a score
            that is not finite, or a caption without a match.

    Example:
        Recall, and how far it would vary with other queries::

            folds = rank_queries(matcher, gallery, protocol="coco-1k")
            recall = mean_recall([fold.recall() for fold in folds])
            intervals = bootstrap_recall(folds)
    """
    if not isinstance(gallery, Gallery):
        raise InputError(f"gallery is {type_of(gallery)}; expected a Gallery, as encode gives it")
    stage = second_stage(matcher, top_k, weight)
    check_count(chunk_size=chunk_size)
    check_count(0, keep=keep)
    wanted = find_protocol(protocol)
    if wanted.judgements is not None and not isinstance(relevance, Judgements):
        raise InputError(
            f"protocol has the judgements {wanted.judgements!r}, but relevance is "
            f"{type_of(relevance)}; expected them, as itmkit.evaluation.read_judgements gives them"
        )
    parts = wanted.split(gallery.image_ids, gallery.text_image_ids)
    if lists is None:
        binary = isinstance(relevance, Tensor) and relevance.dtype == torch.bool
        lists = relevance is not None and not binary
    found = []
    for images, captions in parts:
        own, part = relevance, gallery
        if len(parts) > 1:
            part = gallery.part(images, captions)
            own = relevance[images][:, captions] if isinstance(relevance, Tensor) else relevance
        ranked = rank_both_stages(
            matcher, part, own, stage.top_k, chunk_size, keep=keep, lists=lists, shared=shared
        )
        found.append(ranked.query_ranks(stage))
    return found


class Reranked(NamedTuple):
    """The queries of one direction by their global scores, and their candidates by both stages."""

    ranks: Ranks
    """By global scores, of ``q`` queries."""
    candidates: Candidates
    """Their ``k`` best items."""
    second: Tensor
    """``(q, k)`` pair scores of these."""
    match: Tensor
    """bool ``(q, k)``, which of these match."""

    def by(self, stage: SecondStage) -> Ranks:
        """Ranks after the first ``top_k`` candidates took the order of the blended score."""
        k = stage.top_k
        if not k:
            return self.ranks
        return _reranked(
            self.candidates.first(k), self.blended(stage), self.match[:, :k], self.ranks
        )

    def blended(self, stage: SecondStage) -> Tensor:
        """Blended scores of the first ``top_k`` candidates."""
        first, second = (part[:, : stage.top_k] for part in (self.candidates.scores, self.second))
        return blend(first, second, stage.weight, standardised=stage.standardised)


class RankedGallery(NamedTuple):
    """Both directions of a gallery, for any number of candidates and weight of the second stage."""

    gallery: Gallery
    matches: Matches
    """What matches, by rows, and what is a query."""
    i2t: Reranked | Ranks
    """Of images; ranks alone without candidates."""
    t2i: Reranked | Ranks
    """Of captions."""
    kept: tuple[Candidates, Candidates] | None = None
    """The best captions of images and the best images of captions by their global scores."""
    keep: bool = False
    """Whether the ranks hold them."""
    lists: bool = False
    """Whether they hold the list metrics."""

    def ranks(self, stage: SecondStage) -> tuple[Ranks, Ranks]:
        """The ranks of all images, and of all captions."""
        i2t, t2i = self.i2t, self.t2i
        return (
            i2t.by(stage) if isinstance(i2t, Reranked) else i2t,
            t2i.by(stage) if isinstance(t2i, Reranked) else t2i,
        )

    def query_ranks(self, stage: SecondStage) -> QueryRanks:
        """The ranks of all queries, with their best items and list metrics where wanted."""
        own, matches = self.gallery, self.matches.to(torch.device("cpu"))
        ranks = query_ranks(*self.ranks(stage), self.matches, own.image_ids, own.text_image_ids)
        texts = own.text_ids.cpu()
        ranks = replace(ranks, text_ids=texts[matches.captions])
        if self.kept is None:
            return ranks
        sides = zip(
            self.kept,
            (self.i2t, self.t2i),
            (matches.pairs, matches.pairs.flip(1)),
            (own.text_ids.cpu(), own.image_ids.cpu()),
            (matches.images, matches.captions),
            strict=True,
        )
        best, lists = [], []
        for kept, side, pairs, ids, queries in sides:
            if self.lists:
                lists.append(_list_metrics(kept, side, pairs, matches.grades, stage).of(queries))
            if self.keep:
                found = kept
                if isinstance(side, Reranked):
                    found = kept.reordered(side.blended(stage))
                best.append(_best_items(found, pairs, ids, stage.top_k).of(queries))
        if lists:
            ranks = replace(ranks, i2t_lists=lists[0], t2i_lists=lists[1])
        if best:
            rows, columns = matches.pairs.unbind(1)
            pairs = torch.stack([own.image_ids.cpu()[rows], texts[columns]], 1)
            ranks = replace(
                ranks, i2t_best=best[0], t2i_best=best[1], pairs=pairs, grades=matches.grades
            )
        return ranks


def _list_metrics(
    kept: Candidates,
    side: Reranked | Ranks,
    pairs: Tensor,
    grades: Tensor | None,
    stage: SecondStage,
) -> ListMetrics:
    """List metrics of all queries of one direction, on the CPU.

    Args:
        kept: their best items by global scores.
        side: their ranks.
        pairs: ``(p, 2)`` int64, the rows of a query and of an item that match.
        grades: ``(p,)`` how well.
        stage: what puts the first ones in order.
    """
    grades = torch.ones(len(pairs), dtype=torch.float64) if grades is None else grades
    rows, scores, left_out = (part.cpu() for part in (kept.rows, kept.scores, kept.left_out))
    count = int(max(rows.max(), pairs[:, 1].max())) + 1
    keys = torch.arange(len(rows))[:, None] * count + rows  # a whole number for each pair
    known, order = (pairs[:, 0] * count + pairs[:, 1]).sort()
    place = torch.searchsorted(known, keys).clamp(max=len(known) - 1)
    own = grades[order][place].where(known[place] == keys, 0.0)
    ahead, place = items_ahead(scores, own, left_out), order_of_ties(scores, own).argsort(dim=1)
    if stage.top_k and isinstance(side, Reranked):
        candidates = side.candidates.first(stage.top_k)
        blended, order = side.blended(stage).cpu().sort(dim=1, descending=True, stable=True)
        k = blended.shape[1]
        head = own.gather(1, order)
        first = items_ahead(blended, head, torch.full_like(left_out, -torch.inf))
        ties = order.gather(1, order_of_ties(blended, head))
        # As in _reranked: what is a candidate by chance alone keeps its place.
        secure = (tied_from(candidates.scores) > candidates.left_out[:, None]).cpu()
        ahead[:, :k] = ahead[:, :k].scatter(1, order, first).where(secure, ahead[:, :k])
        place[:, :k] = ties.argsort(dim=1).where(secure, k + place[:, :k])
        place[:, k:] += k
    order = place.argsort(dim=1)
    return metrics_of_lists(own.gather(1, order), ahead.gather(1, order), pairs[:, 0], grades)


def _best_items(found: Candidates, matches: Tensor, ids: Tensor, reranked: int) -> BestItems:
    """Items by their ids, and which of them match, on the CPU.

    Args:
        found: the best items of all queries.
        matches: ``(p, 2)`` int64, the rows of a query and of an item that match.
        ids: of the items, by their rows.
        reranked: how many are in the order of a second stage.
    """
    rows, count = found.rows.cpu(), len(ids)
    keys = torch.arange(len(rows))[:, None] * count + rows  # a whole number for each pair
    match = torch.isin(keys, matches[:, 0] * count + matches[:, 1])
    return BestItems(ids[rows], found.scores.cpu(), match, min(reranked, count))


def rank_both_stages(
    matcher: ScoringModel,
    gallery: Gallery,
    relevance: Tensor | Judgements | None,
    top_k: int,
    chunk_size: int,
    *,
    keep: int = 0,
    lists: bool = False,
    shared: bool,
) -> RankedGallery:
    """Global ranks of a gallery, and both scores of the ``top_k`` best candidates of each query.

    See :func:`rank_queries` for the arguments.
    """
    images, texts = gallery.images, gallery.texts
    n, m = len(images), len(texts)
    shared = shared and -(-n // chunk_size) * -(-m // chunk_size) >= world_size()  # blocks
    matches = find_matches(
        gallery.image_ids, gallery.text_image_ids, relevance, text_ids=gallery.text_ids
    ).to(images.device)
    most = max(int(side.bincount().max()) for side in matches.pairs.unbind(1))  # of one query
    wanted = max(top_k, keep + most if keep else 0, wanted_items(most) if lists else 0)
    order, ordered_matches = near_diagonal(matches.pairs, m)
    in_order = bool((order[1:] > order[:-1]).all())  # then blocks are views, not copies
    for_images = Best(n, m, wanted, matcher.device)
    for_texts = Best(m, n, wanted, matcher.device)

    def score(columns: slice, parts: Sequence[slice]) -> Iterator[Tensor]:
        numbers = order[columns]
        captions = (texts[columns] if in_order else texts[numbers]).to(matcher.device)
        numbers = numbers.to(matcher.device)
        return (block(rows, numbers, captions) for rows in parts)

    def block(rows: slice, numbers: Tensor, captions: Encoding) -> Tensor:
        scores = score_block(matcher, images[rows].to(matcher.device), captions).float()
        check_finite(scores, lambda i, j: f"scores[{rows.start + i}, {int(numbers[j])}]")
        if wanted:
            for_images.see(scores, rows, numbers)
            photos = torch.arange(rows.start, rows.stop, device=scores.device)
            for_texts.see(scores.T, numbers, photos)
        return scores

    with evaluating(matcher):
        i2t, ordered_t2i = ranks_by_tile(
            score, (n, m), ordered_matches, (chunk_size, chunk_size), shared=shared
        )
    place = order.argsort().to(ordered_t2i.ranks.device)
    t2i = ordered_t2i[place]
    if not wanted:
        return RankedGallery(gallery, matches, i2t, t2i)
    if shared:
        for_images.share()
        for_texts.share()
    found = for_images.found(images.device), for_texts.found(images.device)
    ranked = RankedGallery(
        gallery, matches, i2t, t2i, found if keep or lists else None, bool(keep), lists
    )
    if not top_k:
        return ranked
    captions, photos = found[0].first(top_k), found[1].first(top_k)
    second, match = _pair_scores(
        matcher, gallery, (captions, photos), matches.pairs, chunk_size, shared=shared
    )
    return ranked._replace(
        i2t=Reranked(i2t, captions, second[0], match[0]),
        t2i=Reranked(t2i, photos, second[1], match[1]),
    )


def _pair_scores(
    matcher: ScoringModel,
    gallery: Gallery,
    candidates: tuple[Candidates, Candidates],
    matches: Tensor,
    chunk_size: int,
    *,
    shared: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Pair scores of the candidates of images and of captions, and which of them match.

    A pair that is a candidate in both directions is scored once.
    """
    captions, photos = candidates
    images, texts = gallery.images, gallery.texts
    n, m = len(images), len(texts)
    rows, columns = (torch.arange(count, device=images.device) for count in (n, m))
    keys, places = torch.cat(  # a whole number for each pair
        [(rows[:, None] * m + captions.rows).ravel(), (photos.rows * m + columns[:, None]).ravel()]
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
    sides = places.split([captions.rows.numel(), photos.rows.numel()])
    shapes = captions.rows.shape, photos.rows.shape
    return (
        [second[side].view(shape) for side, shape in zip(sides, shapes, strict=True)],
        [match[side].view(shape) for side, shape in zip(sides, shapes, strict=True)],
    )


def _reranked(candidates: Candidates, blended: Tensor, match: Tensor, ranks: Ranks) -> Ranks:
    """Ranks of the best matches after the candidates took the order of the blended score.

    Args:
        candidates: of ``q`` queries.
        blended: ``(q, k)``, their blended scores.
        match: bool ``(q, k)``, which of them match.
        ranks: by global scores.
    """
    left_out = candidates.left_out[:, None]

    def best_of(secure: Tensor) -> Tensor:
        return blended.masked_fill(~secure, -torch.inf).amax(1)

    def count(secure: Tensor, least: Tensor, ranks: Tensor) -> Tensor:
        inside = ((blended >= least[:, None]) & ~match).sum(1)
        return torch.where(secure.any(1), inside, ranks.to(inside.device))

    secure = match & (tied_from(candidates.scores) > left_out)
    above = match & (candidates.scores > left_out)
    best = best_of(secure)
    return Ranks(
        count(secure, tied_from(best), ranks.ranks),
        count(above, best_of(above), ranks.exact),
        torch.where(secure.any(1), best, ranks.best.to(best.device)),
    )
