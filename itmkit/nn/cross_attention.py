"""Cross-attention similarity of SCAN: every word looks for its regions, every region its words."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itmkit.nn.functional import check_tokens, fill_padding

Direction = Literal["t2i", "i2t", "both"]
_Block = tuple[Tensor, Tensor | None, Tensor]


def cross_attention_scores(
    image: Tensor,
    text: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    direction: Direction = "t2i",
    smooth: float = 9.0,
    chunk_elements: int = 2**24,
) -> Tensor:
    r"""Score n images with m captions, each pair by the attention between its tokens.

    .. math::

        A_{lk} = \mathrm{LeakyReLU}_{0.1}(q_l \cdot v_k), \quad
        a_{lk} = \mathrm{softmax}_k \Big(\lambda A_{lk} / \sqrt{\sum_l A_{lk}^2}\Big), \quad
        s = \mathrm{mean}_l \cos\Big(q_l, \sum_k a_{lk} v_k\Big)

    In ``"t2i"`` the queries q are the words of the caption and v the regions of the image, in
    ``"i2t"`` the other way round; ``"both"`` is the half sum. Tokens enter as they are, not
    l2-normalised. The cosine of a zero vector (norm up to 1e-12) is 0, and so is the score of an
    item without a real token, with zero gradients.

    SCAN, as in every level of DAIM. Differs from the released code: all captions at once.

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

    Shape:
        image: ``(n, N, D)``; text: ``(m, L, D)``; image_mask: ``(n, N)``; text_mask: ``(m, L)``;
        result: ``(n, m)``.

    Returns:
        The scores, in [-1, 1]; float32, or float64 if an input is.

    Raises:
        ValueError: for a wrong shape, mask dtype or direction, or a number out of its range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> image, text = torch.randn(2, 5, 8), torch.randn(3, 4, 8)
        >>> cross_attention_scores(image, text, direction="both").shape
        torch.Size([2, 3])
    """
    _check_options(direction, smooth, chunk_elements)
    if text.ndim != 3:
        raise ValueError(f"text must have shape (batch, tokens, D), got {tuple(text.shape)}")
    check_tokens("image", image, text.shape[2], image_mask, "image_mask")
    check_tokens("text", text, text.shape[2], text_mask, "text_mask")
    dtype = torch.promote_types(torch.promote_types(image.dtype, text.dtype), torch.float32)
    image, text = fill_padding(image.to(dtype), image_mask), fill_padding(text.to(dtype), text_mask)

    (n, regions, _), (m, words, _) = image.shape, text.shape
    needs_grad = torch.is_grad_enabled() and (image.requires_grad or text.requires_grad)
    if not needs_grad and image.device.type == "cpu":
        chunk_elements = min(chunk_elements, 2**20)  # what fits in the caches is faster
    pair = max(1, regions * words)
    rows = max(1, min(n, chunk_elements // (pair * max(1, m))))
    columns = max(1, min(m, chunk_elements // (pair * rows)))
    score = partial(_score_block, direction=direction, smooth=smooth)
    if needs_grad and (rows < n or columns < m):
        score = partial(checkpoint, score, use_reentrant=False, preserve_rng_state=False)
    with torch.autocast(image.device.type, enabled=False):
        images = _blocks(rows, image, image_mask, _inverse_root(image.square().sum(dim=2)))
        texts = _blocks(columns, text, text_mask, _inverse_root(text.square().sum(dim=2)))
        return torch.cat([torch.cat([score(*i, *t) for t in texts], dim=1) for i in images])


def _score_block(
    image: Tensor,
    image_mask: Tensor | None,
    image_scale: Tensor,
    text: Tensor,
    text_mask: Tensor | None,
    text_scale: Tensor,
    *,
    direction: Direction,
    smooth: float,
) -> Tensor:
    """Scores of all pairs of a block; padding is zero and a scale the inverse norm of a token."""
    if direction == "i2t":
        dots = _dots(image, text)
        return _attend(dots, image_mask, image_scale, text, text_mask, smooth)
    dots = _dots(text, image)
    score = _attend(dots, text_mask, text_scale, image, image_mask, smooth).T
    if direction == "t2i":
        return score
    dots = dots.permute(3, 2, 1, 0).contiguous()
    return (score + _attend(dots, image_mask, image_scale, text, text_mask, smooth)) / 2


def _dots(query: Tensor, context: Tensor) -> Tensor:
    """Inner products of all tokens, as ``(L, p, r, N)``: see :func:`_attend`."""
    (p, length, _), (r, size, _) = query.shape, context.shape
    dots = query.transpose(0, 1).flatten(0, 1) @ context.flatten(0, 1).T
    return dots.view(length, p, r, size)


def _attend(
    dots: Tensor,
    query_mask: Tensor | None,
    query_scale: Tensor,
    context: Tensor,
    context_mask: Tensor | None,
    smooth: float,
) -> Tensor:
    """Mean cosines ``(p, r)`` of the tokens of p queries and what they find in r contexts.

    ``dots (L, p, r, N)`` has the tokens of the queries first and those of the contexts last, so
    that both the sum over the first and the softmax over the last run at full speed. Contexts
    c = Σ a v are built only where tokens outnumber channels; q·c = Σ a (q·v) and c·c = aᵀ(v vᵀ)a.
    """
    length, p, r, size = dots.shape
    positive = F.leaky_relu(dots, 0.1)
    scale = smooth * _inverse_root(positive.square().sum(dim=0))
    if context_mask is None:
        logits = positive * scale
    else:
        padding = torch.zeros_like(context_mask, dtype=dots.dtype)
        padding = padding.masked_fill(~context_mask, torch.finfo(dots.dtype).min)
        logits = torch.addcmul(padding, positive, scale)
    weights = logits.softmax(dim=3)
    by_context = weights.flatten(0, 1).transpose(0, 1)  # (r, L * p, N)
    if size <= context.shape[2]:
        squares = (by_context @ (context @ context.mT) * by_context).sum(dim=2)
    else:
        squares = (by_context @ context).square().sum(dim=2)
    squares = squares.T.view(length, p, r)
    cosine = (weights * dots).sum(dim=3) * _inverse_root(squares) * query_scale.T.unsqueeze(2)
    total = cosine.clamp(-1, 1).sum(dim=0)
    if query_mask is None:
        return total / max(1, length)
    return total / query_mask.sum(dim=1, keepdim=True).clamp(min=1)


def _inverse_root(square: Tensor) -> Tensor:
    """1/√x, but zero with a zero gradient where x is not above 1e-24."""
    real = square > 1e-24
    return square.where(real, 1).rsqrt().where(real, 0)


def _blocks(size: int, tokens: Tensor, mask: Tensor | None, scale: Tensor) -> list[_Block]:
    """The three of ``size`` items at a time; one empty block if there is no item."""
    masks = [None] * max(1, len(tokens)) if mask is None else mask.split(size)
    return list(zip(tokens.split(size), masks, scale.split(size), strict=False))


def _check_options(direction: str, smooth: float, chunk_elements: int) -> None:
    if direction not in ("t2i", "i2t", "both"):
        raise ValueError(f"direction must be 't2i', 'i2t' or 'both', got {direction!r}")
    if not 0 < smooth < float("inf"):
        raise ValueError(f"smooth must be a finite number above 0, got {smooth}")
    if chunk_elements < 1:
        raise ValueError(f"chunk_elements must be at least 1, got {chunk_elements}")


class CrossAttentionSimilarity(nn.Module):
    """Cross-attention scores of image-caption pairs: :func:`cross_attention_scores` as a module.

    It has no parameters.

    Args:
        direction: ``"t2i"`` (words look for regions), ``"i2t"`` (regions for words) or ``"both"``.
        smooth: inverse temperature of the attention, above 0.
        chunk_elements: size of the largest tensor of attention weights, at least 1.

    Shape:
        image ``(n, N, D)``, text ``(m, L, D)``, image_mask ``(n, N)`` and text_mask ``(m, L)`` bool
        or None → ``(n, m)``.

    Raises:
        ValueError: for a wrong direction or a number out of its range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> similarity = CrossAttentionSimilarity("i2t")
        >>> similarity(torch.randn(2, 5, 8), torch.randn(3, 4, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, direction: Direction = "t2i", smooth: float = 9.0, chunk_elements: int = 2**24
    ) -> None:
        super().__init__()
        _check_options(direction, smooth, chunk_elements)
        self.direction: Direction = direction
        self.smooth = smooth
        self.chunk_elements = chunk_elements

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
        )

    def extra_repr(self) -> str:
        return (
            f"direction={self.direction!r}, smooth={self.smooth}, "
            f"chunk_elements={self.chunk_elements}"
        )
