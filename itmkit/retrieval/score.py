"""Scores of a gallery and of chosen pairs, a bounded number at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from itmkit.checks import InputError, check_shape, type_of
from itmkit.retrieval.encode import evaluating
from itmkit.retrieval.encoding import Encoding, check_encodings
from itmkit.retrieval.protocol import RetrievalModel


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
        InputError: ``chunk_size`` below 1, or a score of the wrong shape.
    """
    check_encodings(images=images, texts=texts)
    check_at_least("chunk_size", chunk_size, 1)
    scores = torch.empty(len(images), len(texts), device=images.device)
    with evaluating(matcher):
        for i in range(0, len(images), chunk_size):
            rows = images[i : i + chunk_size].to(matcher.device)
            for j in range(0, len(texts), chunk_size):
                columns = texts[j : j + chunk_size].to(matcher.device)
                scores[i : i + chunk_size, j : j + chunk_size] = score_block(matcher, rows, columns)
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
        InputError: ``chunk_size`` below 1, or a score that has the wrong shape or is not finite.
    """
    check_encodings(images=images, texts=texts)
    check_at_least("chunk_size", chunk_size, 1)
    if not isinstance(pairs, Tensor) or pairs.dtype != torch.int64:
        raise InputError(f"pairs is {type_of(pairs)}; expected an int64 tensor (p, 2)")
    check_shape((len(pairs), 2), pairs=pairs)
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
                raise InputError(f"matcher.rerank must be ({len(part)},), got {tuple(block.shape)}")
            scores[start : start + chunk_size] = block
    wrong = (~scores.isfinite()).nonzero()
    if len(wrong):
        row, column = pairs[int(wrong[0])].tolist()
        raise InputError(
            f"matcher.rerank must be finite, got {scores[int(wrong[0])].item()} "
            f"for image row {row} and caption row {column}"
        )
    return scores


def score_block(matcher: RetrievalModel, images: Encoding, texts: Encoding) -> Tensor:
    """Scores of a block of images and captions, of the right shape."""
    block = matcher.score(images, texts)
    if block.shape != (len(images), len(texts)):
        raise InputError(
            f"matcher.score must be ({len(images)}, {len(texts)}), got {tuple(block.shape)}"
        )
    return block


def second_stage(
    matcher: RetrievalModel, top_k: int | None, weight: float | None
) -> tuple[int, float]:
    """Number of candidates and weight of the pair score; without a weight, no candidates."""
    top_k = matcher.rerank_top_k if top_k is None else top_k
    weight = matcher.rerank_weight if weight is None else weight
    check_at_least("top_k", top_k, 0)
    if not 0 <= weight <= 1:
        raise InputError(f"weight must be in [0, 1], got {weight}")
    return (top_k if weight > 0 else 0), weight


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise a ``ValueError`` that names a number that is too small."""
    if value < least:
        raise InputError(f"{name} must be at least {least}, got {value}")
