"""Systems that compare every word with every region, behind a global branch or alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import (
    InputError,
    check_non_negative,
    check_optional_count,
    check_without,
)
from itmkit.data.batch import Batch, Images, Texts, check_images, check_texts
from itmkit.distributed import gather, gather_all, rank, world_size
from itmkit.losses import InfoNCELoss
from itmkit.losses.kind import check_kind
from itmkit.nn import HubnessCorrection
from itmkit.nn.contract import Tokens
from itmkit.nn.pooling.global_branch import GlobalBranch
from itmkit.retrieval import Encoding
from itmkit.retrieval.encoding import check_encodings
from itmkit.systems.matcher import Matcher, check_one_caption, cosine_scores


class LocalMatcher(Matcher):
    """Scores pairs by their tokens, :meth:`local_scores`; with a global branch, only candidates.

    Alone, the local scores of all pairs of a batch are trained by ``local_loss``, and an evaluation
    computes them for all pairs. With a ``global_branch``, vectors of the same tokens are trained
    beside them by ``global_loss`` on the whole batch, the local scores on the first ``local_pairs``
    pairs of it. The vectors then rank, in evaluation, index and search, and the local scores put
    the best ``rerank_top_k`` candidates in order.

    Args:
        image_encoder: images to tokens.
        text_encoder: captions to tokens of the same width.
        local_loss: any loss of scores.
        global_branch: see above; None: none.
        global_loss: any loss of scores; None: :class:`InfoNCELoss` of temperature 0.05.
        hubness_correction: of the scores of the global branch, outside of its loss; None: none.
        local_weight: of the loss of the local scores beside the global one, at least 0; at 0 what
            the local scores alone read is not trained, and the encoders give one level.
        local_pairs: so many pairs of a global batch, its first, have trained local scores; None:
            all.
        **kwargs: see :class:`Matcher`; ``rerank_top_k`` needs a ``global_branch``.

    Raises:
        InputError: options of a global branch without one, or a number out of its range.
    """

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        local_loss: nn.Module,
        *,
        global_branch: GlobalBranch | None = None,
        global_loss: nn.Module | None = None,
        hubness_correction: HubnessCorrection | None = None,
        local_weight: float = 1.0,
        local_pairs: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.score_loss = local_loss
        check_kind("scores", loss=local_loss)
        self.global_branch = global_branch
        check_non_negative(local_weight=local_weight)
        if global_branch is None:
            check_without(
                "global_branch",
                global_loss=global_loss,
                hubness_correction=hubness_correction,
                local_weight=local_weight != 1.0,
                local_pairs=local_pairs,
                rerank_top_k=self.rerank_top_k > 0,
            )
        else:
            if global_branch.views != 1:
                raise InputError(
                    f"global_branch.views is {global_branch.views}; expected 1, for a "
                    f"{type(self).__name__}, which has one view of an image"
                )
            global_branch.complete(image_encoder, text_encoder)
            global_loss = global_loss or InfoNCELoss(0.05)
            check_kind("scores", global_loss=global_loss)
            if hubness_correction is not None:
                hubness_correction.complete(global_branch.dim)
        check_optional_count(2, local_pairs=local_pairs)
        self.global_loss = global_loss
        self.hubness_correction = hubness_correction
        self.local_weight = local_weight
        self.local_pairs = local_pairs
        self.warm_up(score_loss=self.score_loss)

    def freeze_unused(self) -> None:
        """Stop training what no loss reads: DDP waits for a gradient of all that is trained.

        A system calls it when it is built.

        Raises:
            InputError: ``local_weight`` is 0 with encoders of several levels.
        """
        if self.local_weight:
            return
        levels = getattr(self.image_encoder, "levels", 1)
        if levels > 1:
            raise InputError(
                f"local_weight is 0 with encoders of {levels} levels, of which the global_branch "
                "reads the last alone; expected a number above 0, or encoders of one level"
            )
        for module in (self.score_loss, getattr(self, "similarity", None)):
            if module is not None:
                module.requires_grad_(False)

    @abstractmethod
    def local_image(self, levels: list[Tokens], images: Images) -> Encoding:
        """What :meth:`local_scores` needs of images, from their tokens on every level."""

    @abstractmethod
    def local_text(self, levels: list[Tokens]) -> Encoding:
        """What :meth:`local_scores` needs of captions, from their tokens on every level."""

    @abstractmethod
    def local_scores(self, images: Encoding, texts: Encoding) -> Tensor:
        """Scores ``(n, m)`` by the tokens, at least fp32."""

    @property
    def score_fields(self) -> tuple[str, ...] | None:  # type: ignore[override]
        """Fields that :meth:`score` reads, None for all."""
        return None if self.global_branch is None else ("vector",)

    @property
    def has_second_stage(self) -> bool:
        return self.global_branch is not None and self.local_weight > 0

    def encode_image(self, images: Images) -> Encoding:
        check_images(images)
        levels = _levels(self.image_encoder(images.features, images.mask))
        local = self.local_image(levels, images)
        if self.global_branch is None:
            return local
        vector = self.global_branch.image(images.features, images.mask, levels[-1])
        return _joined(local, self.corrected(vector, "image"))

    def encode_text(self, texts: Texts) -> Encoding:
        check_texts(texts)
        levels = _levels(self.text_encoder(texts.inputs, texts.mask))
        local = self.local_text(levels)
        if self.global_branch is None:
            return local
        vector = self.global_branch.text(texts.inputs, texts.mask, levels[-1])
        return _joined(local, self.corrected(vector, "text"))

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        check_encodings(images=images, texts=texts)
        if self.global_branch is None:
            return self.local_scores(images, texts)
        return cosine_scores(images.vector, texts.vector)

    def rerank(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        if self.global_branch is None:
            return super().rerank(images, texts, pairs)
        if torch.compiler.is_exporting():  # whose graph has no loop over values
            return self.local_scores(images, texts)[pairs[:, 0], pairs[:, 1]]
        return self.local_pair_scores(images, texts, pairs)

    def local_pair_scores(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        """:meth:`local_scores` ``(p,)`` of pairs ``(p, 2)``, row of the image, row of the caption.

        All pairs of an image at once, or all of a caption, whichever are fewer calls.
        """
        side = int(pairs[:, 1].unique().numel() < pairs[:, 0].unique().numel())
        scores: Tensor | None = None
        for row in pairs[:, side].unique().tolist():
            at = (pairs[:, side] == row).nonzero().squeeze(1)
            others = pairs[at, 1 - side]
            block = (
                self.local_scores(images[row], texts[others])
                if side == 0
                else self.local_scores(images[others], texts[row])
            )
            if scores is None:
                scores = block.new_zeros(len(pairs))
            scores[at] = block.flatten()
        return torch.zeros(0, device=pairs.device) if scores is None else scores

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.choose_negatives()
        if self.global_branch is None:
            return {"loss": self.score_loss(*self.batch_scores(batch))}
        check_one_caption(batch)
        assert self.global_loss is not None
        images, texts, branch = batch.images, batch.texts, self.global_branch
        regions = _levels(self.image_encoder(images.features, images.mask))
        words = _levels(self.text_encoder(texts.inputs, texts.mask))
        vectors = [
            branch.image(images.features, images.mask, regions[-1]),
            branch.text(texts.inputs, texts.mask, words[-1]),
        ]
        image, text, ids = gather_all([*vectors, batch.image_ids], sizes=batch.sizes)
        terms = {"global": self.global_loss(cosine_scores(image, text), ids[:, None] == ids)}
        if self.local_weight:
            terms["local"] = self._local_loss(regions, words, batch)
        terms["loss"] = terms["global"] + self.local_weight * terms.get("local", 0.0)
        return terms

    def _local_loss(self, regions: list[Tokens], words: list[Tokens], batch: Batch) -> Tensor:
        """On the first pairs of the global batch."""
        own, sizes = len(batch), batch.sizes
        if self.local_pairs is not None:
            sizes = _sizes_of_first(self.local_pairs, batch)
            own = sizes[rank()]
        images = self.local_image(_first(regions, own), batch.images.rows(slice(own)))
        texts = self.local_text(_first(words, own)).gathered(sizes=sizes)
        scored: Sequence[int] | None = sizes  # rows of the scores, by process
        if self.local_pairs is not None:  # few processes may have them, all score a share
            parts = torch.arange(len(texts)).tensor_split(world_size())
            images = images.gathered(sizes=sizes)[parts[rank()]]
            scored = [len(part) for part in parts]
        scores = gather(self.local_scores(images, texts), sizes=scored)
        ids = gather(batch.image_ids[:own], sizes=sizes)
        loss: Tensor = self.score_loss(scores, ids[:, None] == ids)
        return loss


def _levels(given: list[Tokens] | Tokens) -> list[Tokens]:
    """The levels of an encoder of several, or of one."""
    return [Tokens(*level) for level in (given if isinstance(given, list) else [given])]


def _first(levels: list[Tokens], count: int) -> list[Tokens]:
    """The tokens of the first items."""
    return [
        Tokens(tokens[:count], None if mask is None else mask[:count]) for tokens, mask in levels
    ]


def _sizes_of_first(count: int, batch: Batch) -> tuple[int, ...]:
    """How many of the first pairs of the global batch every process has."""
    sizes: Sequence[int] | None = batch.sizes
    if sizes is None:
        own = torch.tensor([len(batch)], device=batch.image_ids.device)
        sizes = gather(own, sizes=[1] * world_size()).tolist()
    before = [sum(sizes[:place]) for place in range(len(sizes))]
    return tuple(max(0, min(size, count - rows)) for size, rows in zip(sizes, before, strict=True))


def _joined(local: Encoding, vector: Tensor) -> Encoding:
    return Encoding(vector=vector, **local.items(), **dict.fromkeys(local.absent()))
