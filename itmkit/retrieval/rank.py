"""Score a gallery, re-rank the best candidates, and count ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from itmkit.checks import InputError, check_count, check_finite, type_of
from itmkit.distributed import gather, rank, world_size
from itmkit.metrics.judgements import Judgements, find_matches
from itmkit.metrics.list_metrics import wanted_items
from itmkit.metrics.protocol import Protocol, find_protocol
from itmkit.metrics.query_ranks import QueryRanks, recall_of_folds
from itmkit.metrics.ranks import near_diagonal, ranks_by_tile
from itmkit.retrieval.candidates import Best, Candidates
from itmkit.retrieval.encode import Gallery, evaluating
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.model import ScoringModel
from itmkit.retrieval.ranked import RankedGallery, RankedSide
from itmkit.retrieval.score import pair_scores, score_block, second_stage


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
    t2i = ordered_t2i[order.argsort().to(ordered_t2i.ranks.device)]
    if shared and wanted:
        for_images.share()
        for_texts.share()
    found = for_images.found(images.device), for_texts.found(images.device)
    candidates = found[0].first(top_k), found[1].first(top_k)
    second, match = _pair_scores(
        matcher, gallery, candidates, matches.pairs, chunk_size, shared=shared and top_k > 0
    )
    return RankedGallery(
        gallery,
        matches,
        RankedSide(i2t, found[0], second[0], match[0]),
        RankedSide(t2i, found[1], second[1], match[1]),
        keep=bool(keep),
        lists=lists,
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

    A pair that is a candidate in both directions is scored once. Pairs go by caption: captions of
    one image have candidates in common.
    """
    captions, photos = candidates
    images, texts = gallery.images, gallery.texts
    n, m = len(images), len(texts)
    rows, columns = (torch.arange(count, device=images.device) for count in (n, m))
    keys, places = torch.cat(  # a whole number for each pair
        [(captions.rows * n + rows[:, None]).ravel(), (columns[:, None] * n + photos.rows).ravel()]
    ).unique(return_inverse=True)
    pairs = torch.stack([keys % n, keys // n], 1)
    if shared:  # whole chunks, so that each pair is scored beside the same others
        share = -(-len(pairs) // (chunk_size * world_size())) * chunk_size
        own = pairs[rank() * share : (rank() + 1) * share]
        second = pair_scores(matcher, images, texts, own, chunk_size=chunk_size)
        second = gather(second.to(matcher.device)).to(images.device)
    else:
        second = pair_scores(matcher, images, texts, pairs, chunk_size=chunk_size)
    match = torch.isin(keys, matches[:, 1] * n + matches[:, 0])
    sides = places.split([captions.rows.numel(), photos.rows.numel()])
    shapes = captions.rows.shape, photos.rows.shape
    return (
        [second[side].view(shape) for side, shape in zip(sides, shapes, strict=True)],
        [match[side].view(shape) for side, shape in zip(sides, shapes, strict=True)],
    )
