"""Cross-attention similarity of SCAN: every word looks for its regions, every region its words."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itmkit.checks import InputError, check_choice, check_count, check_positive
from itmkit.nn.attention.cross_attention_blocks import (
    captions_block,
    images_block,
    one_over_count,
    score_block,
    sorted_captions_block,
)
from itmkit.nn.attention.cross_attention_shares import Direction, cross_attention_shares
from itmkit.nn.functional import check_tokens, fill_padding
from itmkit.precision import warn_if_slow_on_cpu

_CACHED_ELEMENTS = 2**21  # a block of this size stays in the caches of a CPU


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
            one = captions_block(
                fill_padding(text, text_mask).transpose(0, 1).flatten(0, 1),
                [(words, m)],
                one_over_count(text_mask, text.new_full((m,), words)),
                dtype,
                direction,
            )
            packed = images_block(image, image_mask, dtype, direction)
            return score_block(packed, one, direction=direction, smooth=smooth)

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
    score = partial(score_block, direction=direction, smooth=smooth)
    if needs_grad and (rows < n or columns < m):
        score = partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    with torch.autocast(image.device.type, enabled=False):
        images = [
            images_block(image[i : i + rows], _rows(image_mask, i, rows), product_dtype, direction)
            for i in range(0, n, rows)
        ]
        texts = [
            sorted_captions_block(
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


def _rows(mask: Tensor | None, start: int, count: int) -> Tensor | None:
    return None if mask is None else mask[start : start + count]


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
