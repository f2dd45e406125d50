"""TVRN: image and caption refined by each other before they are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.data.batch import Images
from itmkit.losses import HingeCrossEntropyLoss
from itmkit.nn import RefinedSimilarity, l2_normalize
from itmkit.nn.attention.focal import Focal
from itmkit.nn.contract import Tokens, common_width
from itmkit.nn.refinement.refined_similarity import Reasoning
from itmkit.nn.refinement.visual_refinement import RefinedImage
from itmkit.retrieval import Encoding
from itmkit.systems.explanation import Explanation, check_pair, token_maps
from itmkit.systems.local_matcher import LocalMatcher


class TVRN(LocalMatcher):
    """Mutually textual and visual refinement network.

    Regions are refined by their semantic and geometric relations, words by the image that they are
    compared with; the pair is then compared word by word and the comparisons reasoned over. The
    score of a pair is a logit; the published loss takes its sigmoid.

    The relations of the regions come with the data: ``relation_threshold`` of
    :class:`itmkit.data.ImageTextData`. For an encoder of pixels they may be left out: the cells of
    a grid do not overlap, so each is related to itself alone.

    Differs from the released code: every caption is refined by the image that it is compared with,
    not by the first of the batch; in evaluation every image has the relations of its own boxes; the
    loss has the softmax of either direction; ranks are taken from logits. See
    :class:`itmkit.nn.RefinedSimilarity` and :class:`itmkit.losses.HingeCrossEntropyLoss`.

    Args:
        image_encoder: images to tokens ``(B, N, D)``.
        text_encoder: captions to tokens ``(B, L, D)``.
        reasoning: over the comparisons of a pair: ``sgr`` (graph) or ``saf`` (filtration).
        focal: which regions a word compares itself with: ``none`` (by attention; equal to the
            released default ``glo``), ``equal``, ``prob`` or ``global``.
        similarity_dim: width of the comparisons.
        num_regions: number of regions of every image, for the released BatchNorm over positions;
            None for LayerNorm and any number.
        dropout: of the poolings, in [0, 1).
        chunk_pairs: pairs computed at a time; memory grows with it, results do not change.
        loss: any loss of scores in :mod:`itmkit.losses`, or one of your own that takes logits
            ``(n, n)`` and the true pairs ``(n, n)``; None: :class:`HingeCrossEntropyLoss` of the
            published numbers.
        **kwargs: see :class:`LocalMatcher`, such as a ``global_branch`` (ours), and
            :class:`Matcher`.

    Raises:
        InputError: if widths do not agree, or a number is out of its range; in use, for region
            features without relations.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        *,
        reasoning: Reasoning = "sgr",
        focal: Focal = "none",
        similarity_dim: int = 256,
        num_regions: int | None = None,
        dropout: float = 0.0,
        chunk_pairs: int = 256,
        loss: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        dim = common_width(image_encoder=image_encoder, text_encoder=text_encoder)
        loss = loss or HingeCrossEntropyLoss(weight=0.5)
        super().__init__(image_encoder, text_encoder, loss, **kwargs)
        self.similarity = RefinedSimilarity(
            dim,
            similarity_dim,
            reasoning=reasoning,
            focal=focal,
            num_regions=num_regions,
            dropout=dropout,
            chunk_pairs=chunk_pairs,
        )
        self.freeze_unused()

    def local_image(self, levels: list[Tokens], images: Images) -> Encoding:
        tokens, mask = levels[-1]
        refined = self.similarity.visual(l2_normalize(tokens), _relations(images, tokens), mask)
        return Encoding(
            refined_vector=refined.vector,
            tokens=refined.tokens,
            mask=refined.mask,
            context_tokens=refined.context,
            context_mask=refined.context_mask,
        )

    def local_text(self, levels: list[Tokens]) -> Encoding:
        tokens, mask = levels[-1]
        return Encoding(tokens=l2_normalize(tokens), mask=mask)

    def local_scores(self, images: Encoding, texts: Encoding) -> Tensor:
        return self.similarity.score(*self._sides(images, texts))

    def local_pair_scores(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        return self.similarity.score_pairs(*self._sides(images, texts), pairs)

    def explain(self, image: Encoding, text: Encoding) -> list[Explanation]:
        """Where each refined word looks; the reasoning after that has no share of single words."""
        check_pair(image, text)
        attention = self.similarity.attention(*self._sides(image, text))[0, 0]
        maps = token_maps([attention], self.image_encoder)
        return [Explanation("attention", "comparison", maps, float(self.local_scores(image, text)))]

    def _sides(
        self, images: Encoding, texts: Encoding
    ) -> tuple[RefinedImage, Tensor, Tensor | None]:
        dtype = self.similarity.logit.weight.dtype  # encodings made under autocast may be narrower
        refined = RefinedImage(
            context=images.context_tokens.to(dtype),
            context_mask=images.context_mask,
            tokens=images.tokens.to(dtype),
            mask=images.mask,
            vector=images.refined_vector.to(dtype),
        )
        return refined, texts.tokens.to(dtype), texts.mask


def _relations(images: Images, tokens: Tensor) -> Tensor:
    """Relations ``(n, N, N)`` of the tokens of images."""
    if images.relations is not None:
        return images.relations
    if images.features.ndim == 4:  # the cells of a grid do not overlap
        return torch.eye(tokens.shape[1], dtype=tokens.dtype, device=tokens.device).expand(
            tokens.shape[0], -1, -1
        )
    raise InputError(
        "images.relations is None; expected a tensor with region features: set "
        "relation_threshold of the data"
    )
