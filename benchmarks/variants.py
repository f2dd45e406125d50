"""The systems without one of their parts, or with another in its place."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.peers.generalised_pooling import GeneralisedPooling
from benchmarks.peers.systems import mean_of_tokens
from itmkit.nn import ExternalSpatialAttention, TextRefinement, VisualRefinement
from itmkit.nn.functional import fill_padding
from itmkit.nn.refinement.text_refinement import CaptionPart, ImagePart, RefinedText
from itmkit.nn.refinement.visual_refinement import RefinedImage
from itmkit.systems import MATE, TVRN

Pooling = Literal["mean", "generalised"]


class PooledMATE(MATE):
    """MATE with another pooling than external spatial attention, on both sides.

    Args:
        image_encoder: see :class:`MATE`.
        text_encoder: see :class:`MATE`.
        pooling: ``mean``, or ``generalised`` (:class:`GeneralisedPooling`). Tokens are not dropped:
            all views of an image are the same.
        **kwargs: see :class:`MATE`.
    """

    def __init__(
        self, image_encoder: nn.Module, text_encoder: nn.Module, *, pooling: Pooling, **kwargs: Any
    ) -> None:
        super().__init__(image_encoder, text_encoder, **kwargs)
        branch = self.global_branch
        branch.image_pool = _OtherPool(branch.token_dim, pooling, self.views)
        branch.text_pool = _OtherPool(branch.token_dim, pooling, 1)


class _OtherPool(ExternalSpatialAttention):
    """The same shapes, by another pooling."""

    def __init__(self, dim: int, pooling: Pooling, num_views: int) -> None:
        super().__init__(dim, num_views, drop=0.0)
        del self.linear
        self.generalised = GeneralisedPooling() if pooling == "generalised" else None

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        pool = self.generalised or mean_of_tokens
        vector: Tensor = pool(x, mask)
        return vector.repeat_interleave(self.num_views, dim=0) if self.training else vector


class UnrefinedTVRN(TVRN):
    """TVRN without the refinement of one side or of both.

    What is not refined is doubled, as refined tokens are twice as many; the rest is the same.

    Args:
        image_encoder: see :class:`TVRN`.
        text_encoder: see :class:`TVRN`.
        text_refinement: whether words are refined by the image.
        visual_refinement: whether regions are refined by their relations. Without, the context that
            refines the words is the regions themselves.
        dropout: see :class:`TVRN`.
        **kwargs: see :class:`TVRN`.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        *,
        text_refinement: bool = True,
        visual_refinement: bool = True,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_encoder, text_encoder, dropout=dropout, **kwargs)
        parts, dim = self.similarity, self.similarity.dim
        if not text_refinement:
            parts.textual = _PlainText(dim, attention=parts.textual.attention, dropout=dropout)
        if not visual_refinement:
            parts.visual = _PlainImage(dim, attention=parts.visual.attention, dropout=dropout)


class _PlainText(TextRefinement):
    """The words as they are, whatever the image."""

    def pairs(self, captions: CaptionPart, images: ImagePart) -> RefinedText:
        words = captions.words.repeat(1, 2, 1)
        mask = None if captions.mask is None else captions.mask.repeat(1, 2)
        vector = self.pool(words, mask)
        n = len(images.key)
        return RefinedText(words.expand(n, -1, -1, -1), mask, vector.expand(n, -1, -1))


class _PlainImage(VisualRefinement):
    """The regions as they are, whatever surrounds them."""

    def forward(self, image: Tensor, relations: Tensor, mask: Tensor | None = None) -> RefinedImage:
        image = fill_padding(image, mask)
        tokens = torch.cat([image, image], dim=1)
        both = None if mask is None else mask.repeat(1, 2)
        return RefinedImage(image, mask, tokens, both, self.pool(tokens, both))
