"""Cross-attention similarity of SCAN: every word looks for its regions, every region its words."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itmkit.checks import InputError, check_choice, check_count, check_positive
from itmkit.nn.attention.cross_attention_shares import Direction, cross_attention_shares
from itmkit.nn.functional import check_tokens, fill_padding
from itmkit.nn.layers.linear import linear
from itmkit.precision import warn_if_slow_on_cpu
from itmkit.vectors import inverse_norm

_CACHED_ELEMENTS = 2**21  # a block of this size stays in the caches of a CPU
_SAFE_SMOOTH = 20.0  # e^20 squared and summed is far from what float32 can hold


def cross_attention_scores(
    image: Tensor,
    text: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    direction: Direction = "t2i",
    smooth: float = 9.0,
    chunk_elements: int = 2**24,
    bf16_products: bool = False,
) -> Tensor:
    r"""Score n images with m captions, each pair by the attention between its tokens.

    .. math::

        A_{lk} = \mathrm{LeakyReLU}_{0.1}(q_l \cdot v_k), \quad
        a_{lk} = \mathrm{softmax}_k \Big(\lambda A_{lk} / \sqrt{\sum_l A_{lk}^2}\Big), \quad
        s = \mathrm{mean}_l \cos\Big(q_l, \sum_k a_{lk} v_k\Big)

    In ``"t2i"`` the queries q are the words of the caption and v the regions of the image, in
    ``"i2t"`` the other way round; ``"both"`` is the half sum. Tokens enter as they are, not
    l2-normalised. The cosine of a zero vector is 0, and so is the score of an item without a real
    token, with zero gradients.

    SCAN, as in every level of DAIM. Differs from the released code: all captions at once, of
    their real words alone, and no context is built where there are fewer tokens than channels.

    Args:
        image: regions of the images; the padding may hold anything.
        text: words of the captions; the padding may hold anything.
        image_mask: bool, True on real regions; None if all are real.
        text_mask: bool, True on real words; None if all are real.
        direction: ``"t2i"``, ``"i2t"`` or ``"both"``.
        smooth: inverse temperature λ of the softmax, above 0.
        chunk_elements: images and captions are taken in blocks whose ``pairs x N x L`` weights are
            at most this many (but at least one pair a block). If there are several and gradients
            are needed, a block is computed again in the backward pass instead of kept. The scores
            do not depend on it.
        bf16_products: without gradients, multiply regions and words in bfloat16. All else stays
            in fp32. Faster where the processor has such products, and warned of where a CPU is
            slower with them; scores change by about 1e-3.

    Shape:
        image: ``(n, N, D)``; text: ``(m, L, D)``; image_mask: ``(n, N)``; text_mask: ``(m, L)``;
        result: ``(n, m)``.

    Returns:
        The scores, in [-1, 1]; float32, or float64 if an input is.

    Raises:
        InputError: for a wrong shape, mask dtype or direction, or a number out of its range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> image, text = torch.randn(2, 5, 8), torch.randn(3, 4, 8)
        >>> cross_attention_scores(image, text, direction="both").shape
        torch.Size([2, 3])
    """
    _check_options(direction, smooth, chunk_elements)
    if text.ndim != 3:
        raise InputError(f"text has the shape {tuple(text.shape)}; expected (batch, tokens, D)")
    check_tokens("image", image, text.shape[2], image_mask, "image_mask")
    check_tokens("text", text, text.shape[2], text_mask, "text_mask")
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    image, text = fill_padding(image.to(dtype), image_mask), text.to(dtype)
    needs_grad = torch.is_grad_enabled() and (image.requires_grad or text.requires_grad)
    on_cpu = image.device.type == "cpu"
    if on_cpu and not needs_grad:
        chunk_elements = min(chunk_elements, _CACHED_ELEMENTS)

    (n, regions, _), (m, words, _) = image.shape, text.shape
    if 0 in (n, regions, m, words):
        return image.new_zeros(n, m) + 0 * (image.sum() + text.sum())

    if torch.compiler.is_exporting():  # blocks would fix the numbers of items
        with torch.autocast(image.device.type, enabled=False):
            one = _captions(
                fill_padding(text, text_mask).transpose(0, 1).flatten(0, 1),
                [(words, m)],
                _share(text_mask, text.new_full((m,), words)),
                dtype,
                direction,
            )
            packed = _pack_images(image, image_mask, dtype, direction)
            return _score_block(packed, one, direction=direction, smooth=smooth)

    place = torch.arange(m * words, device=text.device).view(m, words)
    lengths, order = [words] * m, None
    # Reading lengths would break a graph, and make a GPU wait in every training step.
    if text_mask is not None and not torch.compiler.is_compiling() and (on_cpu or not needs_grad):
        counts, order = text_mask.sum(dim=1).sort(stable=True)
        lengths = counts.clamp(min=1).tolist()
        real_first = text_mask.byte().argsort(dim=1, descending=True, stable=True)
        place = place.gather(1, real_first)[order]
        if counts[0] == 0:  # else no padding is read
            text = fill_padding(text, text_mask)
        text_mask = None
    else:
        text = fill_padding(text, text_mask)

    rows, columns = _block_shape(n, regions, m, words, chunk_elements)
    product_dtype = torch.bfloat16 if bf16_products and not needs_grad else dtype
    if product_dtype == torch.bfloat16 and on_cpu and not torch.compiler.is_compiling():
        warn_if_slow_on_cpu("bf16_products", torch.bfloat16)
    score = partial(_score_block, direction=direction, smooth=smooth)
    if needs_grad and (rows < n or columns < m):
        score = partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    with torch.autocast(image.device.type, enabled=False):
        images = [
            _pack_images(image[i : i + rows], _rows(image_mask, i, rows), product_dtype, direction)
            for i in range(0, n, rows)
        ]
        texts = [
            _pack_captions(
                text.flatten(0, 1),
                place[j : j + columns],
                lengths[j : j + columns],
                _rows(text_mask, j, columns),
                product_dtype,
                direction,
            )
            for j in range(0, m, columns)
        ]
        scores = torch.cat([torch.cat([score(i, t) for t in texts], dim=1) for i in images])
    return scores if order is None else scores[:, order.argsort()]


class _Images(NamedTuple):
    """A block of r images."""

    tokens: Tensor  # (r, N, D), zero where there is padding
    gram: Tensor | None  # (r, N, N), None where contexts cost less, or nothing needs it
    scale: Tensor  # (r, N), inverse norms of the tokens
    share: Tensor  # (r,), one over the number of real tokens


class _Captions(NamedTuple):
    """A block of c captions: those of the same length are a group, W words in all."""

    tokens: Tensor  # (W, D), group by group, word by word, caption by caption
    groups: list[tuple[int, int]]  # words of a caption, captions
    grams: list[Tensor | None]  # of each group (captions, words, words), as above
    scale: Tensor  # (W,)
    share: Tensor  # (c,)


def _pack_images(
    tokens: Tensor, mask: Tensor | None, product_dtype: torch.dtype, direction: Direction
) -> _Images:
    scale = inverse_norm(tokens.square().sum(dim=2))
    share = _share(mask, tokens.new_full(tokens.shape[:1], tokens.shape[1]))
    tokens = tokens.to(product_dtype)
    gram = None if direction == "i2t" else _gram(tokens, scale.dtype)
    return _Images(tokens, gram, scale, share)


def _pack_captions(
    words: Tensor,
    place: Tensor,
    lengths: list[int],
    mask: Tensor | None,
    product_dtype: torch.dtype,
    direction: Direction,
) -> _Captions:
    """Captions sorted by length, whose words are the rows ``place (c, L)`` of ``words``."""
    groups = [(length, len(list(same))) for length, same in itertools.groupby(lengths)]
    ends = list(itertools.accumulate(count for _, count in groups))
    places = [
        place[end - count : end, :length].T.flatten()
        for (length, count), end in zip(groups, ends, strict=True)
    ]
    tokens = words.index_select(0, torch.cat(places))
    share = _share(mask, tokens.new_tensor(lengths))
    return _captions(tokens, groups, share, product_dtype, direction)


def _captions(
    tokens: Tensor,
    groups: list[tuple[int, int]],
    share: Tensor,
    product_dtype: torch.dtype,
    direction: Direction,
) -> _Captions:
    """A block of captions, of the words in their order."""
    scale = inverse_norm(tokens.square().sum(dim=1))
    tokens = tokens.to(product_dtype)
    grams = [
        None if direction == "t2i" else _gram(part.unflatten(0, group).transpose(0, 1), scale.dtype)
        for part, group in zip(_split(tokens, groups), groups, strict=True)
    ]
    return _Captions(tokens, groups, grams, scale, share)


def _score_block(
    images: _Images, captions: _Captions, *, direction: Direction, smooth: float
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


def _find_regions(dots: Tensor, images: _Images, smooth: float) -> Tensor:
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


def _share(mask: Tensor | None, counts: Tensor) -> Tensor:
    """One over the number of real tokens of each item; those of all if there is no mask."""
    return (counts if mask is None else mask.sum(dim=1).clamp(min=1).to(counts.dtype)).reciprocal()


def _rows(mask: Tensor | None, start: int, count: int) -> Tensor | None:
    return None if mask is None else mask[start : start + count]


def _split(packed: Tensor, groups: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    if len(groups) == 1:
        return (packed,)
    return torch.split(packed, [length * count for length, count in groups])


def _block_shape(n: int, regions: int, m: int, words: int, elements: int) -> tuple[int, int]:
    """How many images and captions a block has: the sides of its matrix alike, or all of one."""
    side = max(math.isqrt(elements), elements // (n * regions))
    columns = min(m, max(1, side // words))
    rows = min(n, max(1, elements // (regions * words * columns)))
    return rows, columns


def _check_options(direction: str, smooth: float, chunk_elements: int) -> None:
    check_choice("direction", direction, Direction)
    check_positive(smooth=smooth)
    check_count(chunk_elements=chunk_elements)


class CrossAttentionSimilarity(nn.Module):
    """Cross-attention scores of image-caption pairs: :func:`cross_attention_scores` as a module.

    It has no parameters.

    Args:
        direction: ``"t2i"`` (words look for regions), ``"i2t"`` (regions for words) or ``"both"``.
        smooth: inverse temperature of the attention, above 0.
        chunk_elements: size of the largest tensor of attention weights, at least 1.
        bf16_products: in evaluation, multiply regions and words in bfloat16.

    Shape:
        image ``(n, N, D)``, text ``(m, L, D)``, image_mask ``(n, N)`` and text_mask ``(m, L)`` bool
        or None → ``(n, m)``.

    Raises:
        InputError: for a wrong direction or a number out of its range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> similarity = CrossAttentionSimilarity("i2t")
        >>> similarity(torch.randn(2, 5, 8), torch.randn(3, 4, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        direction: Direction = "t2i",
        smooth: float = 9.0,
        chunk_elements: int = 2**24,
        *,
        bf16_products: bool = False,
    ) -> None:
        super().__init__()
        _check_options(direction, smooth, chunk_elements)
        self.direction: Direction = direction
        self.smooth = smooth
        self.chunk_elements = chunk_elements
        self.bf16_products = bf16_products

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Scores ``(n, m)``."""
        return cross_attention_scores(
            image,
            text,
            image_mask,
            text_mask,
            direction=self.direction,
            smooth=self.smooth,
            chunk_elements=self.chunk_elements,
            bf16_products=self.bf16_products,
        )

    def shares(
        self,
        image: Tensor,
        text: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """Shares ``(B, L, N)`` in the scores of pairs; see :func:`cross_attention_shares`."""
        return cross_attention_shares(
            image, text, image_mask, text_mask, direction=self.direction, smooth=self.smooth
        )

    def extra_repr(self) -> str:
        return (
            f"direction={self.direction!r}, smooth={self.smooth}, "
            f"chunk_elements={self.chunk_elements}, bf16_products={self.bf16_products}"
        )
