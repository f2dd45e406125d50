"""The cross-attention score of a pair as a sum over its words and regions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from itmkit.checks import check_choice, check_positive
from itmkit.nn.attention.scan_attention import attention_weights
from itmkit.nn.functional import check_tokens, fill_padding
from itmkit.precision import at_least_float32
from itmkit.vectors import inverse_norm

Direction = Literal["t2i", "i2t", "both"]


def cross_attention_shares(
    image: Tensor,
    text: Tensor,
    image_mask: Tensor | None = None,
    text_mask: Tensor | None = None,
    *,
    direction: Direction = "t2i",
    smooth: float = 9.0,
) -> Tensor:
    r"""Split the cross-attention scores of pairs into a share for every word and region.

    .. math::
        s = \sum_{l, k} \frac{a_{lk}\; q_l \cdot v_k}{L\, |q_l|\, |c_l|}, \qquad
        c_l = \sum_k a_{lk} v_k

    Args:
        image: ``(B, N, D)`` regions.
        text: ``(B, L, D)`` words; caption b goes with image b.
        image_mask: ``(B, N)`` bool, True on real regions, or None.
        text_mask: ``(B, L)`` bool, or None.
        direction: as in :func:`~itmkit.nn.attention.cross_attention.cross_attention_scores`.
        smooth: likewise.

    Returns:
        ``(B, L, N)``, at least fp32, which add up to the score of a pair; zero on padding.

    Raises:
        InputError: for a wrong shape, mask dtype or direction, or a number out of its range.

    Example:
        >>> import torch
        >>> from itmkit.nn import CrossAttentionSimilarity
        >>> _ = torch.manual_seed(0)
        >>> image, text = torch.randn(1, 5, 8), torch.randn(1, 4, 8)
        >>> shares = cross_attention_shares(image, text)
        >>> shares.sum().allclose(CrossAttentionSimilarity()(image, text))
        True
    """
    check_choice("direction", direction, Direction)
    check_positive(smooth=smooth)
    check_tokens("image", image, text.shape[-1], image_mask, "image_mask")
    check_tokens("text", text, text.shape[-1], text_mask, "text_mask")
    regions = at_least_float32(fill_padding(image, image_mask))
    words = at_least_float32(fill_padding(text, text_mask))

    def found(queries: Tensor, own: Tensor | None, context: Tensor, other: Tensor | None) -> Tensor:
        dots = queries @ context.mT
        weights = attention_weights(dots, own, other, smooth=smooth)
        norms = queries.square().sum(-1), (weights @ context).square().sum(-1)
        scale = inverse_norm(norms[0]) * inverse_norm(norms[1])
        if own is None:
            scale = scale / queries.shape[1]
        else:
            scale = scale / own.sum(1, keepdim=True).clamp(min=1)
        return weights * dots * scale.unsqueeze(2)

    parts = []
    if direction != "i2t":
        parts.append(found(words, text_mask, regions, image_mask))
    if direction != "t2i":
        parts.append(found(regions, image_mask, words, text_mask).mT)
    return sum(parts[1:], parts[0]) / len(parts)
