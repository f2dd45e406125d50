"""External spatial attention: tokens of one item to one vector."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itmkit.checks import check_count, check_dropout
from itmkit.nn.functional import check_tokens, fill_padding, xavier_linear
from itmkit.precision import at_least_float32
from itmkit.vectors import inverse_norm


class ExternalSpatialAttention(nn.Module):
    r"""Pool tokens with an attention of their own for every channel.

    .. math::
        a = \mathrm{softmax}_n (W f_n + b), \qquad v = \sum_n a_n \odot f_n

    The softmax runs over the real tokens of an item, channel by channel. The result is not
    l2-normalised. In training every view drops each token with probability ``drop``, but never all
    tokens of an item.

    From "Momentum-Augmented Transformer Encoder" (MATE) and the ESA network it builds on.

    Args:
        dim: width D of the tokens.
        num_views: views K an item gets in training. In eval mode there is one, of all tokens.
        drop: probability in [0, 1) that a view drops a token, in training only. Zero for none.
        start_at_mean: whether the attention starts at zero, so that a vector is the mean of its
            tokens (ours); else Xavier-uniform.

    Shape:
        - x: ``(B, N, D)``
        - mask: ``(B, N)`` bool, True on real tokens, or None
        - output: ``(B, D)``; in training ``(B * K, D)``, the views of one item adjacent;
          zero for an item without a real token

    Raises:
        InputError: a wrong size or probability, or a wrong shape or dtype of ``x`` or ``mask``.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> pool = ExternalSpatialAttention(8, num_views=2)
        >>> x, mask = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
        >>> pool(x, mask).shape, pool.eval()(x, mask).shape
        (torch.Size([6, 8]), torch.Size([3, 8]))
    """

    def __init__(
        self, dim: int, num_views: int = 1, drop: float = 0.2, *, start_at_mean: bool = False
    ) -> None:
        super().__init__()
        check_count(dim=dim)
        check_count(num_views=num_views)
        check_dropout(drop=drop)
        self.dim = dim
        self.num_views = num_views
        self.drop = drop
        self.linear = xavier_linear(dim, dim)
        if start_at_mean:
            nn.init.zeros_(self.linear.weight)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_views={self.num_views}, drop={self.drop}"

    def attention(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Weights ``(B, N, D)`` of all real tokens, as in eval mode: no token dropped.

        They sum to one over the tokens and are zero on padding.
        """
        check_tokens("x", x, self.dim, mask, "mask")
        return _masked_softmax(self.linear(fill_padding(x, mask)), mask)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        check_tokens("x", x, self.dim, mask, "mask")
        x = fill_padding(x, mask)
        logits = self.linear(x)
        if self.training and (self.num_views > 1 or self.drop > 0):
            if mask is None:
                mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            mask = self._draw_views(mask)
            x = x.repeat_interleave(self.num_views, dim=0)
            logits = logits.repeat_interleave(self.num_views, dim=0)
        return (_masked_softmax(logits, mask) * x).sum(dim=1)

    def _draw_views(self, mask: Tensor) -> Tensor:
        """Token masks ``(B * K, N)`` of the views."""
        mask = mask.repeat_interleave(self.num_views, dim=0)
        if self.drop == 0 or mask.shape[1] == 0:
            return mask
        draw = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, -1)
        kept = draw >= torch.clamp(draw.amax(dim=1, keepdim=True), max=self.drop)
        return kept & mask


def pooled_shares(
    image_pool: ExternalSpatialAttention,
    image: Tensor,
    image_mask: Tensor | None,
    text_pool: ExternalSpatialAttention,
    text: Tensor,
    text_mask: Tensor | None,
) -> Tensor:
    r"""Split the cosines of pooled pairs into a share for every word and region.

    .. math::
        \cos(v, t) = \sum_{l, n} \frac{(b_l \odot t_l) \cdot (a_n \odot v_n)}{|v|\,|t|}

    with the attention *a* of the regions and *b* of the words, as in evaluation.

    Args:
        image_pool: pools the regions.
        image: ``(B, N, D)`` regions.
        image_mask: ``(B, N)`` bool, True on real regions, or None.
        text_pool: pools the words.
        text: ``(B, L, D)`` words.
        text_mask: ``(B, L)`` bool, or None.

    Returns:
        ``(B, L, N)``, at least fp32, which add up to the cosine of a pair; zero on padding.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> pool = ExternalSpatialAttention(4)
        >>> regions, words = torch.randn(1, 3, 4), torch.randn(1, 2, 4)
        >>> shares = pooled_shares(pool, regions, None, pool, words, None)
        >>> vectors = pool.eval()(regions), pool(words)
        >>> shares.sum().allclose(torch.cosine_similarity(*vectors))
        True
    """
    sides = []
    for pool, tokens, mask in ((text_pool, text, text_mask), (image_pool, image, image_mask)):
        parts = at_least_float32(pool.attention(tokens, mask) * fill_padding(tokens, mask))
        sides.append(parts * inverse_norm(parts.sum(1).square().sum(-1))[:, None, None])
    return sides[0] @ sides[1].mT


def _masked_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return logits.softmax(dim=1)
    real = mask.unsqueeze(-1)
    weights = logits.masked_fill(~real, torch.finfo(logits.dtype).min).softmax(dim=1)
    return weights * real  # all zero where an item has no real token
