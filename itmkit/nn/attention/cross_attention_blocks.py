"""Blocks of images and of captions whose pairs are scored at once by cross-attention.

Captions of a block are grouped by their length, so that no padding is multiplied. The norm of a
context is that of its tokens' inner products (``gram``) where these are fewer than the channels.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from itmkit.nn.attention.cross_attention_shares import Direction
from itmkit.nn.layers.linear import linear
from itmkit.vectors import inverse_norm

_SAFE_SMOOTH = 20.0  # e^20 squared and summed is far from what float32 can hold


class ImagesBlock(NamedTuple):
    """A block of r images."""

    tokens: Tensor  # (r, N, D), zero where there is padding
    gram: Tensor | None  # (r, N, N), None where contexts cost less, or nothing needs it
    scale: Tensor  # (r, N), inverse norms of the tokens
    share: Tensor  # (r,), one over the number of real tokens


class CaptionsBlock(NamedTuple):
    """A block of c captions: those of the same length are a group, W words in all."""

    tokens: Tensor  # (W, D), group by group, word by word, caption by caption
    groups: list[tuple[int, int]]  # words of a caption, captions
    grams: list[Tensor | None]  # of each group (captions, words, words), as above
    scale: Tensor  # (W,)
    share: Tensor  # (c,)


def images_block(
    tokens: Tensor, mask: Tensor | None, product_dtype: torch.dtype, direction: Direction
) -> ImagesBlock:
    """A block of images."""
    scale = inverse_norm(tokens.square().sum(dim=2))
    share = one_over_count(mask, tokens.new_full(tokens.shape[:1], tokens.shape[1]))
    tokens = tokens.to(product_dtype)
    gram = None if direction == "i2t" else _gram(tokens, scale.dtype)
    return ImagesBlock(tokens, gram, scale, share)


def sorted_captions_block(
    words: Tensor,
    place: Tensor,
    lengths: list[int],
    mask: Tensor | None,
    product_dtype: torch.dtype,
    direction: Direction,
) -> CaptionsBlock:
    """Captions sorted by length, whose words are the rows ``place (c, L)`` of ``words``."""
    groups = [(length, len(list(same))) for length, same in itertools.groupby(lengths)]
    ends = list(itertools.accumulate(count for _, count in groups))
    places = [
        place[end - count : end, :length].T.flatten()
        for (length, count), end in zip(groups, ends, strict=True)
    ]
    tokens = words.index_select(0, torch.cat(places))
    share = one_over_count(mask, tokens.new_tensor(lengths))
    return captions_block(tokens, groups, share, product_dtype, direction)


def captions_block(
    tokens: Tensor,
    groups: list[tuple[int, int]],
    share: Tensor,
    product_dtype: torch.dtype,
    direction: Direction,
) -> CaptionsBlock:
    """A block of captions, of the words in their order."""
    scale = inverse_norm(tokens.square().sum(dim=1))
    tokens = tokens.to(product_dtype)
    grams = [
        None if direction == "t2i" else _gram(part.unflatten(0, group).transpose(0, 1), scale.dtype)
        for part, group in zip(_split(tokens, groups), groups, strict=True)
    ]
    return CaptionsBlock(tokens, groups, grams, scale, share)


def score_block(
    images: ImagesBlock, captions: CaptionsBlock, *, direction: Direction, smooth: float
) -> Tensor:
    """Scores ``(r, c)`` of all pairs of a block."""
    dots = linear(captions.tokens, images.tokens.flatten(0, 1))
    dots = dots.to(images.scale.dtype).unflatten(1, images.scale.shape)
    t2i, i2t = [], []
    for group, part, tokens, scale, gram in zip(
        captions.groups,
        _split(dots, captions.groups),
        _split(captions.tokens, captions.groups),
        _split(captions.scale, captions.groups),
        captions.grams,
        strict=True,
    ):
        part, scale = part.unflatten(0, group), scale.view(*group, 1)
        if direction != "i2t":
            cosine = _find_regions(part, images, smooth) * scale
            t2i.append(cosine.clamp(-1, 1).sum(dim=0))
        if direction != "t2i":
            cosine = _find_words(part, tokens.unflatten(0, group), gram, scale, smooth)
            i2t.append((cosine * images.scale).clamp(-1, 1).sum(dim=2))
    scores = []
    if direction != "i2t":
        scores.append(torch.cat(t2i).T * captions.share)
    if direction != "t2i":
        scores.append(torch.cat(i2t).T * images.share.unsqueeze(1))
    return sum(scores[1:], scores[0]) / len(scores)


def _find_regions(dots: Tensor, images: ImagesBlock, smooth: float) -> Tensor:
    """What words find in images: ``q·c / |c|`` as ``(L, c, r)`` of the dots ``(L, c, r, N)``."""
    weights = _weights(dots, 0, 3, images.scale, smooth)
    by_image = weights.flatten(0, 1).transpose(0, 1)  # (r, L * c, N)
    if images.gram is None:
        squares = (by_image.to(images.tokens.dtype) @ images.tokens).to(dots.dtype).square().sum(2)
    else:
        squares = _times(by_image @ images.gram, by_image).sum(2)
    return (weights * dots).sum(3) * inverse_norm(squares.T.unflatten(0, dots.shape[:2]))


def _find_words(
    dots: Tensor, tokens: Tensor, gram: Tensor | None, scale: Tensor, smooth: float
) -> Tensor:
    """What regions find in captions ``(L, c, D)``: ``(c, r, N)`` of the dots ``(L, c, r, N)``."""
    weights = _weights(dots, 3, 0, scale.unsqueeze(3), smooth)
    by_caption = weights.flatten(2).transpose(0, 1)  # (c, L, r * N)
    if gram is None:
        tokens = tokens.permute(1, 2, 0)
        squares = (tokens @ by_caption.to(tokens.dtype)).to(dots.dtype).square().sum(1)
    else:
        squares = _times(gram @ by_caption, by_caption).sum(1)
    return (weights * dots).sum(0) * inverse_norm(squares.unflatten(1, dots.shape[2:]))


def _weights(dots: Tensor, queries: int, context: int, scale: Tensor, smooth: float) -> Tensor:
    """Attention weights up to a factor for each query, which no cosine depends on.

    ``queries`` and ``context`` are dimensions; ``scale`` is zero where the context is.
    """
    positive = F.leaky_relu(dots, 0.1)
    logits = _times(positive, smooth * inverse_norm(positive.square().sum(queries, keepdim=True)))
    if smooth > _SAFE_SMOOTH:
        logits = logits.masked_fill(scale == 0, -smooth)
        logits = logits - logits.detach().amax(context, keepdim=True)
    return logits.exp_()


def _times(ours: Tensor, other: Tensor) -> Tensor:
    """Product of a tensor that nobody else has and another one; without gradients in its memory."""
    return ours * other if torch.is_grad_enabled() else ours.mul_(other)


def _gram(tokens: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Inner products of the tokens of an item, unless there are more of them than channels."""
    if not torch.compiler.is_exporting() and tokens.shape[1] > tokens.shape[2]:
        return None
    return (tokens @ tokens.mT).to(dtype)


def one_over_count(mask: Tensor | None, counts: Tensor) -> Tensor:
    """One over the number of real tokens of each item; those of all if there is no mask."""
    return (counts if mask is None else mask.sum(dim=1).clamp(min=1).to(counts.dtype)).reciprocal()


def _split(packed: Tensor, groups: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    if len(groups) == 1:
        return (packed,)
    return torch.split(packed, [length * count for length, count in groups])
