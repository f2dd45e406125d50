"""TVRN's image side: regions refined by what surrounds them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import InputError, check_optional_count, check_shape
from itmkit.nn.attention.scan_attention import ScanAttention, attention_weights
from itmkit.nn.encoders.two_part_gru import TwoPartGRU
from itmkit.nn.functional import check_tokens, fill_padding, xavier_linear
from itmkit.nn.pooling.guided_pooling import GuidedPooling
from itmkit.vectors import l2_normalize


class RefinedImage(NamedTuple):
    """Images after :class:`VisualRefinement`.

    Args:
        context: ``(B, N, D)`` what surrounds each region; zero on padding.
        context_mask: ``(B, N)`` bool, or None.
        tokens: ``(B, 2N, D)`` refined regions; zero on padding.
        mask: ``(B, 2N)`` bool, or None.
        vector: ``(B, D)`` of the whole image.
    """

    context: Tensor
    context_mask: Tensor | None
    tokens: Tensor
    mask: Tensor | None
    vector: Tensor


class VisualRefinement(nn.Module):
    r"""Refine the regions of an image by their semantic and geometric relations.

    .. math::
        \mathrm{rel} &= \mathrm{attend}(v, v), \qquad
        \mathrm{pos} = \mathrm{l2}\big(\mathrm{softmax}(\lambda G)\, v\big), \quad
        G = \mathrm{l2}\big(\mathrm{LeakyReLU}_{0.1}(\mathrm{IoU} \odot \cos(W_q v, W_k v))\big) \\
        \mathrm{con} &= \mathrm{l2}\big((\mathrm{rel} + \mathrm{pos}) / 2\big), \qquad
        \mathrm{new} = \mathrm{l2}\big(\mathrm{LeakyReLU}_{0.1}(v \odot \mathrm{con})\big) \\
        v' &= \mathrm{l2}\big(\mathrm{GRU}([v; \mathrm{new}]) + [v; v]\big), \qquad
        g = \mathrm{GuidedPooling}(v')

    From TVRN. Differs from the released code: a relation is divided by the norms of its own two
    regions, not by that of another row; every image goes with the relations of its own boxes,
    in evaluation too; and the number of regions may vary.

    Args:
        dim: width D of the regions.
        attention: the attention of ``rel``, to share it; None for one of its own.
        num_regions: with a number, the pooling has TVRN's BatchNorm with a channel for every
            position, and all images have that many regions; None for LayerNorm and any number.
        dropout: dropout of the pooling, in [0, 1).

    Shape:
        - image: ``(B, N, D)``, unit vectors in TVRN
        - relations: ``(B, N, N)``, IoU of the boxes or 0 / 1 (see ``itmkit.data.box_relations``)
        - mask: ``(B, N)`` bool, True on real regions, or None
        - output: the :class:`RefinedImage`

    Raises:
        InputError: a wrong size, or a wrong shape or dtype of an input.

    Example:
        >>> import torch
        >>> image = l2_normalize(torch.randn(2, 3, 8))
        >>> refined = VisualRefinement(8)(image, torch.eye(3).expand(2, 3, 3))
        >>> refined.tokens.shape, refined.vector.shape
        (torch.Size([2, 6, 8]), torch.Size([2, 8]))
    """

    def __init__(
        self,
        dim: int,
        *,
        attention: ScanAttention | None = None,
        num_regions: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_optional_count(num_regions=num_regions)
        self.dim = dim
        self.attention = attention or ScanAttention(dim)
        if self.attention.dim != dim:
            raise InputError(f"attention.dim is {self.attention.dim}; expected {dim}, that of dim")
        self.relation_query = xavier_linear(dim, dim)
        self.relation_key = xavier_linear(dim, dim)
        self.gru = TwoPartGRU(dim)
        norm: Literal["batch", "layer"] = "layer" if num_regions is None else "batch"
        num_tokens = None if num_regions is None else 2 * num_regions
        self.pool = GuidedPooling(dim, norm=norm, num_tokens=num_tokens, dropout=dropout)

    def semantic(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """``rel`` ``(B, N, D)``: what each region finds in all regions."""
        check_tokens("image", image, self.dim, mask, "mask")
        found: Tensor = self.attention(image, image, mask, mask)
        return found

    def geometric(self, image: Tensor, relations: Tensor, mask: Tensor | None = None) -> Tensor:
        """``pos`` ``(B, N, D)``: what each region finds in those it overlaps with."""
        check_tokens("image", image, self.dim, mask, "mask")
        check_shape((*image.shape[:2], image.shape[1]), relations=relations)
        image = fill_padding(image, mask)
        relations = fill_padding(fill_padding(relations, mask).mT, mask).mT
        query, key = self.relation_query(image), self.relation_key(image)
        cosine = l2_normalize(query) @ l2_normalize(key).mT
        weights = attention_weights(
            relations.to(cosine.dtype) * cosine, mask, mask, smooth=self.attention.smooth
        )
        return fill_padding(l2_normalize(weights @ image), mask)

    def context(self, image: Tensor, relations: Tensor, mask: Tensor | None = None) -> Tensor:
        """``con`` ``(B, N, D)``: the two together."""
        found = self.semantic(image, mask) + self.geometric(image, relations, mask)
        return l2_normalize(found / 2)

    def forward(self, image: Tensor, relations: Tensor, mask: Tensor | None = None) -> RefinedImage:
        context = self.context(image, relations, mask)
        image = fill_padding(image, mask)
        new = l2_normalize(F.leaky_relu(image * context, 0.1))
        tokens, both = self.gru(image, new, mask)
        return RefinedImage(context, mask, tokens, both, self.pool(tokens, both))
