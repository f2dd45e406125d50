"""Scores of a gallery and of chosen pairs, a bounded number at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from itmkit.checks import (
    InputError,
    check_count,
    check_finite,
    check_shape,
    check_share,
    type_of,
)
from itmkit.chunks import chunks
from itmkit.retrieval.encode import evaluating
from itmkit.retrieval.encoding import Encoding, check_encodings
from itmkit.retrieval.model import ScoringModel


def score_matrix(
    matcher: ScoringModel, images: Encoding, texts: Encoding, *, chunk_size: int = 256
) -> Tensor:
    """Global scores of all images against all captions, computed block by block.

    Args:
        matcher: the model whose ``score`` is used, in evaluation mode.
        images: ``n`` encoded images.
        texts: ``m`` encoded captions.
        chunk_size: at most this many images and captions per block.

    Returns:
        ``(n, m)`` fp32 on the device of ``images``.

    Raises:
        InputError: ``chunk_size`` below 1, or a score of the wrong shape.
    """
    check_encodings(images=images, texts=texts)
    check_count(chunk_size=chunk_size)
    scores = torch.empty(len(images), len(texts), device=images.device)
    with evaluating(matcher):
        for rows in chunks(len(images), chunk_size):
            part = images[rows].to(matcher.device)
            for columns in chunks(len(texts), chunk_size):
                captions = texts[columns].to(matcher.device)
                scores[rows, columns] = score_block(matcher, part, captions)
    return scores


def pair_scores(
    matcher: ScoringModel,
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
        chunk_size: at most this many pairs per call.

    Returns:
        ``(p,)`` fp32 on the device of ``images``.

    Raises:
        InputError: ``chunk_size`` below 1, or a score that has the wrong shape or is not finite.
    """
    check_encodings(images=images, texts=texts)
    check_count(chunk_size=chunk_size)
    if not isinstance(pairs, Tensor) or pairs.dtype != torch.int64:
        raise InputError(f"pairs is {type_of(pairs)}; expected an int64 tensor (p, 2)")
    check_shape((len(pairs), 2), pairs=pairs)
    scores = torch.empty(len(pairs), device=images.device)
    with evaluating(matcher):
        for chunk in chunks(len(pairs), chunk_size):
            part = pairs[chunk]
            rows, local_rows = part[:, 0].unique(return_inverse=True)
            columns, local_columns = part[:, 1].unique(return_inverse=True)
            block = matcher.rerank(
                images[rows].to(matcher.device),
                texts[columns].to(matcher.device),
                torch.stack([local_rows, local_columns], 1).to(matcher.device),
            )
            if block.shape != (len(part),):
                raise InputError(
                    f"matcher.rerank gives the shape {tuple(block.shape)}; expected ({len(part)},)"
                )
            scores[chunk] = block
    check_finite(
        scores,
        lambda i: (
            f"matcher.rerank of image row {int(pairs[i, 0])} and caption row {int(pairs[i, 1])}"
        ),
    )
    return scores


def score_block(matcher: ScoringModel, images: Encoding, texts: Encoding) -> Tensor:
    """Scores of a block of images and captions, of the right shape."""
    block = matcher.score(images, texts)
    if block.shape != (len(images), len(texts)):
        raise InputError(
            f"matcher.score gives the shape {tuple(block.shape)}; "
            f"expected ({len(images)}, {len(texts)})"
        )
    return block


class SecondStage(NamedTuple):
    """How the best candidates of a query are put in order by a model's second stage."""

    top_k: int
    """How many candidates; 0 for none."""
    weight: float
    """Share of the pair score, in [0, 1]."""
    standardised: bool
    """Whether pair scores are brought to the scale of the global ones: :func:`blend`."""


def second_stage(matcher: ScoringModel, top_k: int | None, weight: float | None) -> SecondStage:
    """The second stage of a model, with other numbers if given; without a weight, none.

    Pair scores are standardised where the model has a true ``rerank_standardised``.

    Raises:
        InputError: if a number is out of its range, or a weight is given where nothing is weighted.
    """
    if top_k is None and weight and not matcher.rerank_top_k:
        raise InputError(
            f"weight is {weight}, but rerank_top_k of the model is 0; expected top_k too, or no "
            "weight"
        )
    top_k = matcher.rerank_top_k if top_k is None else top_k
    weight = matcher.rerank_weight if weight is None else weight
    check_count(0, top_k=top_k)
    check_share(weight=weight)
    # A model of somebody's own may do without.
    standardised = bool(getattr(matcher, "rerank_standardised", False))
    return SecondStage(top_k if weight > 0 else 0, weight, standardised)
