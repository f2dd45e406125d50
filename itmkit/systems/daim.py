"""DAIM: matching on several levels, features kept apart, a margin that adapts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from itmkit.data.batch import Batch, Images
from itmkit.losses import AdaptiveMarginTripletLoss
from itmkit.nn import CrossAttentionSimilarity
from itmkit.nn.contract import Tokens, common_levels, common_width
from itmkit.retrieval import Encoding
from itmkit.systems.explanation import Explanation, check_pair, token_maps
from itmkit.systems.local_matcher import LocalMatcher


class DAIM(LocalMatcher):
    r"""High feature distinguishability for adaptive image–text matching.

    Image and text are encoded on several levels, from parts to the whole scene, each level with
    features that are kept apart (:class:`itmkit.nn.FeatureDiscriminability`, in the encoders). The
    score of a pair is the sum over the levels of a cross-attention similarity,

    .. math:: S_{ij} = \sum_l \mathrm{sim}(v_i^{(l)}, t_j^{(l)})

    and the loss a hinge whose margin follows the scores. The published schedule, backbones frozen
    at first, is :class:`itmkit.callbacks.FreezeUntil`.

    Differs from the released code: the margin is part of the checkpoint, and all pairs are scored
    at once; see the loss and the modules.

    Args:
        image_encoder: images to tokens on several levels (:class:`itmkit.nn.TimmLevels`,
            :class:`itmkit.nn.SharedLevels`), or on one, as all encoders of :mod:`itmkit.nn`.
        text_encoder: captions to tokens on as many levels, of the same width.
        similarity: of one level; None: :class:`CrossAttentionSimilarity` of words to regions.
        loss: any loss of scores in :mod:`itmkit.losses`, or one of your own that takes scores
            ``(n, n)`` and the true pairs ``(n, n)``; None: :class:`AdaptiveMarginTripletLoss` of
            the published numbers, which sums.
        **kwargs: see :class:`LocalMatcher`, such as a ``global_branch`` (ours), whose tokens are
            those of the last level, and :class:`Matcher`; the published system has no ``warmup``.

    Raises:
        InputError: if widths or numbers of levels do not agree, or a number is out of its range.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        *,
        similarity: CrossAttentionSimilarity | None = None,
        loss: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        common_width(image_encoder=image_encoder, text_encoder=text_encoder)
        levels = common_levels(image_encoder=image_encoder, text_encoder=text_encoder)
        loss = loss or AdaptiveMarginTripletLoss(reduction="sum")
        super().__init__(image_encoder, text_encoder, loss, **kwargs)
        self.levels = levels
        self.similarity = similarity or CrossAttentionSimilarity()
        self.freeze_unused()

    def local_image(self, levels: list[Tokens], images: Images) -> Encoding:
        return _encoding(levels)

    def local_text(self, levels: list[Tokens]) -> Encoding:
        return _encoding(levels)

    def local_scores(self, images: Encoding, texts: Encoding) -> Tensor:
        scores = [
            self.similarity(image, text, image_mask, text_mask)
            for (image, image_mask), (text, text_mask) in zip(
                self._tokens(images), self._tokens(texts), strict=True
            )
        ]
        total: Tensor = sum(scores[1:], scores[0])
        return total

    def explain(self, image: Encoding, text: Encoding) -> list[Explanation]:
        """Shares of words and regions in the score, on every level."""
        check_pair(image, text)
        shares = [
            self.similarity.shares(regions, words, image_mask, text_mask)[0]
            for (regions, image_mask), (words, text_mask) in zip(
                self._tokens(image), self._tokens(text), strict=True
            )
        ]
        maps = token_maps(shares, self.image_encoder)
        return [Explanation("shares", "score", maps, float(self.local_scores(image, text)))]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        margin = getattr(self.score_loss, "margin", None)
        if isinstance(margin, Tensor):  # it adapts
            self.log("train/margin", margin.float(), batch_size=len(batch))
        return loss

    def _tokens(self, encoding: Encoding) -> list[Tokens]:
        """Tokens of every level."""
        fields = encoding.items()
        return [
            Tokens(fields[f"level{level}_tokens"], fields.get(f"level{level}_mask"))
            for level in range(self.levels)
        ]


def _encoding(levels: list[Tokens]) -> Encoding:
    fields: dict[str, Tensor | None] = {}
    for level, (tokens, mask) in enumerate(levels):
        fields |= {f"level{level}_tokens": tokens, f"level{level}_mask": mask}
    return Encoding(**fields)
