"""MATE: a momentum-augmented transformer encoder over global and local features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from itmkit._internals import callbacks_of
from itmkit.callbacks import FreezeUntil, HardNegativeMiner, MomentumTeacher
from itmkit.callbacks.momentum_teacher import teacher_of
from itmkit.checks import (
    InputError,
    check_count,
    check_non_negative,
    check_optional_count,
    check_share,
    check_without,
)
from itmkit.data.batch import Batch, Images, Texts, check_images, check_texts
from itmkit.distributed import gather, gather_all, rank, world_size
from itmkit.losses import (
    GroupTripletLoss,
    HECTLoss,
    MomentumDistillationLoss,
    RowCrossEntropyLoss,
    SigLIPLoss,
)
from itmkit.losses.kind import check_kind
from itmkit.modes import evaluation_mode
from itmkit.nn import GlobalBranch, HubnessCorrection, MatchingHead, MeanPath, Tokens
from itmkit.nn.contract import Fusion, common_width
from itmkit.nn.weights import freeze_unused
from itmkit.precision import at_least_float32
from itmkit.retrieval import Encoding
from itmkit.retrieval.encoding import check_encodings
from itmkit.systems.explanation import Explanation, check_pair, token_maps
from itmkit.systems.fusion_pairs import hardest_pairs, pairs_of_groups
from itmkit.systems.matcher import Matcher, cosine_scores
from itmkit.systems.own_callbacks import own_callbacks
from itmkit.systems.vector_queue import VectorQueue

_GLOBAL_LOSSES = ("triplet", "hect", "distillation")
_FUSION_BRANCH = ("fusion", "matching_head", "fusion_loss")


class MATE(Matcher):
    r"""Momentum-augmented transformer encoder: a global branch, a fusion branch and a teacher.

    The global branch pools the tokens of either side by external spatial attention; it ranks. The
    fusion branch reads an image and a caption together; it re-ranks the best candidates. The loss
    is the weighted sum of

    - ``triplet``: the group hinge of the global branch, against all negatives while warming up and
      against the hardest one after that;
    - ``hect``: the HECT loss of the global vectors, with negatives of both modalities (ours: the
      released code has HECT on the fused outputs alone, which is ``hect_weight=0``);
    - ``distillation``: the global vectors against those of a momentum teacher;
    - ``fusion``: HECT's core on pair scores, each pair against itself with the caption, and with
      the image, that the global branch confuses it with most. With a ``matching_head``, the binary
      cross-entropy of its logits on the same pairs.

    With ``fusion_start`` training has two stages: the global branch alone, and then, with that
    frozen, the fusion branch alone. Without, both are trained together, and the fusion loss changes
    the encoders too, as published.

    Each may be replaced (``--model.triplet itmkit.losses.InfoNCELoss``), or left out by a weight of
    0. Parameters that no loss reads are not trained.

    Zhou and Wang, "Unified learning for image-text alignment via multi-scale feature fusion",
    Computer Vision and Image Understanding 260, 2025. Differs from the released code: that fuses
    every image with its own caption before ranking, so that its evaluation knows the answer; see
    the losses and modules for the rest.

    Args:
        image_encoder: images to tokens ``(B, N, D)``.
        text_encoder: captions to tokens ``(B, L, D)``.
        fusion: encoder of pairs, of width D, such as :class:`FusionEncoder` (published) or
            :class:`CrossAttentionFusion`; None for a global branch alone.
        matching_head: judges the read-outs of the fusion encoder; None for their cosine.
        views: views K of an image in a batch, and of its caption (``caption_views`` of the data).
        token_drop: probability in [0, 1) that a view of an image drops a token.
        mean_path: vectors of mean features that are joined with those of the tokens (ours), whose
            pooling then starts as the mean; None: the tokens alone, as published.
        hubness_correction: of the global scores, outside of the losses (ours); None: none.
        triplet: loss of the global scores ``(n·K, n·K)`` of all views and their true pairs, any
            loss of scores; None: :class:`GroupTripletLoss` of K views. The published system sums:
            ``reduction: sum``.
        hect: loss of the global vectors, any loss of vectors; None: :class:`HECTLoss` of the
            published numbers.
        distillation: loss against the teacher, of the arguments of
            :class:`MomentumDistillationLoss`, which it is if None.
        fusion_loss: any loss of scores, for the pairs of the fusion branch: it gets a row for each
            anchor, of the score of the true pair and that of the wrong one ``(a, 2)``, or with
            ``fusion_group``, those of the group ``(a, G)``. None: HECT's core with the numbers of
            ``hect``; with a ``matching_head``, the binary cross-entropy, which is
            :class:`SigLIPLoss` of temperature 1 and bias 0; with a ``fusion_group``,
            :class:`RowCrossEntropyLoss`.
        triplet_weight: weight of the loss, 0 to leave it out; so for all four.
        hect_weight: see ``triplet_weight``.
        distillation_weight: see ``triplet_weight``.
        fusion_weight: see ``triplet_weight``; with 0 there is no second stage either.
        fusion_pairs: how many pairs of a global batch train the fusion branch, spread evenly; None
            for all of them.
        fusion_group: G, at least 2: each G adjacent pairs of a batch are compared with each other
            alone, all with all, as a :class:`~itmkit.callbacks.HardNegativeMiner` with that
            ``group_size`` brings them together; the ``batch_size`` is a multiple. None: each pair
            with the hardest negatives of the global batch.
        fusion_start: optimizer steps of the first stage, which has all losses but that of the
            fusion branch; the second stage has that alone, and the global branch is frozen in
            evaluation mode. None: one stage, with all losses.
        momentum: of the teacher, in [0, 1].
        queue_size: teacher vectors of earlier batches that the distillation compares with.
        warmup: see :class:`Matcher`; of the hinge.
        **kwargs: see :class:`Matcher`; ``rerank_top_k`` needs a ``fusion``.

    Raises:
        InputError: if widths do not agree, or a number is out of its range.
    """

    score_fields = ("vector",)

    def __init__(
        self,
        image_encoder: nn.Module,
        text_encoder: nn.Module,
        fusion: nn.Module | None = None,
        *,
        matching_head: MatchingHead | None = None,
        views: int = 2,
        token_drop: float = 0.2,
        mean_path: MeanPath | None = None,
        hubness_correction: HubnessCorrection | None = None,
        triplet: nn.Module | None = None,
        hect: nn.Module | None = None,
        distillation: nn.Module | None = None,
        fusion_loss: nn.Module | None = None,
        triplet_weight: float = 1.0,
        hect_weight: float = 1.0,
        distillation_weight: float = 1.0,
        fusion_weight: float = 1.0,
        fusion_pairs: int | None = None,
        fusion_group: int | None = None,
        fusion_start: int | None = None,
        momentum: float = 0.995,
        queue_size: int = 0,
        warmup: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(warmup=warmup, **kwargs)
        common_width(image_encoder=image_encoder, text_encoder=text_encoder, fusion=fusion)
        if fusion is None:
            if self.rerank_top_k:
                raise InputError(
                    f"rerank_top_k is {self.rerank_top_k}, but there is no fusion encoder"
                )
            check_without(
                "fusion encoder",
                matching_head=matching_head,
                fusion_loss=fusion_loss,
                fusion_weight=fusion_weight not in (0, 1),
                fusion_pairs=fusion_pairs,
                fusion_group=fusion_group,
            )
        elif not isinstance(fusion, Fusion):
            raise InputError(
                f"fusion is a {type(fusion).__name__} without pair_score; expected a fusion "
                "encoder as itmkit.nn.contract describes it"
            )
        self.weights = {
            "triplet": triplet_weight,
            "hect": hect_weight,
            "distillation": distillation_weight,
            "fusion": fusion_weight if fusion is not None else 0.0,
        }
        _check_weights(self.weights, fusion_start)
        check_share(momentum=momentum)
        check_optional_count(fusion_pairs=fusion_pairs)
        check_optional_count(2, fusion_group=fusion_group)
        if fusion_loss is None and matching_head is not None:
            fusion_loss = SigLIPLoss(1.0, 0.0, learnt=False)
        elif fusion_loss is None and fusion_group is not None:
            fusion_loss = RowCrossEntropyLoss()
        self.triplet = triplet or GroupTripletLoss(group_size=views)
        self.hect = hect or HECTLoss()
        self.distillation = distillation or MomentumDistillationLoss()
        self.fusion_loss = fusion_loss
        check_kind("scores", triplet=self.triplet)
        check_kind("vectors", hect=self.hect)
        check_kind("teacher", distillation=self.distillation)
        if fusion_loss is not None:
            check_kind("scores", fusion_loss=fusion_loss)
        if isinstance(self.triplet, GroupTripletLoss) and self.triplet.group_size != views:
            raise InputError(
                f"triplet.group_size is {self.triplet.group_size}; expected {views}, as views"
            )
        if triplet_weight:
            self.warm_up(triplet=self.triplet)
        self.views = views
        self.fusion_pairs = fusion_pairs
        self.fusion_group = fusion_group
        self.fusion_start = fusion_start
        self.momentum = momentum
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        self.global_branch = GlobalBranch(
            mean_path, views=views, token_drop=token_drop, start_at_mean=mean_path is not None
        )
        self.global_branch.complete(image_encoder, text_encoder)
        self.hubness_correction = hubness_correction
        if hubness_correction is not None:
            hubness_correction.complete(self.global_branch.dim)
        self.fusion = fusion
        self.matching_head = matching_head
        self._taught: tuple[Tensor, Tensor, Tensor] | None = None
        self._freeze_unused()
        self.queue = VectorQueue(queue_size, self.global_branch.dim)

    def _freeze_unused(self) -> None:
        """Stop training what no loss reads: DDP waits for a gradient of all that is trained."""
        modules = {name: [getattr(self, name)] for name in _GLOBAL_LOSSES}
        modules["fusion"] = [getattr(self, name) for name in _FUSION_BRANCH]
        for name, weight in self.weights.items():
            for module in modules[name]:
                if not weight and module is not None:
                    module.requires_grad_(False)
        if self.weights["fusion"] and _is_learnt(self.fusion):  # a head reads other outputs of it
            assert self.fusion is not None
            token = next(self.fusion.parameters()).new_ones(1, 1, self.global_branch.token_dim)
            vector = self.corrected(token.new_ones(1, self.global_branch.dim), "image")
            side = Encoding(vector=vector, tokens=token)
            pair = torch.zeros(1, 2, dtype=torch.int64, device=token.device)
            with evaluation_mode(self.fusion):
                freeze_unused(self.fusion, self.rerank(side, side, pair))

    def configure_callbacks(self) -> Sequence[Callback]:
        """The momentum teacher, where something is learnt from it; what freezes each stage."""
        branch = ["image_encoder", "text_encoder", "global_branch"]
        callbacks: list[Callback] = []
        if self.weights["distillation"]:
            callbacks.append(MomentumTeacher(self.momentum, list(branch)))
        if self.fusion_start is not None:
            heads = [name for name in _FUSION_BRANCH if _is_learnt(getattr(self, name))]
            branch += [name for name in _GLOBAL_LOSSES if _is_learnt(getattr(self, name))]
            callbacks.append(FreezeUntil(heads, self.fusion_start, "step"))
            callbacks.append(FreezeUntil(branch, None, "step", since=self.fusion_start))
        return own_callbacks(self, callbacks, "momentum, distillation_weight, fusion_start")

    # ------------------------------------------------------------------------------- methods

    def encode_image(self, images: Images) -> Encoding:
        check_images(images)
        tokens = Tokens(*self.image_encoder(images.features, images.mask))
        vector = self.global_branch.image(images.features, images.mask, tokens)
        vector = self.corrected(vector, "image")
        return Encoding(vector=vector, tokens=tokens.tokens, mask=tokens.mask)

    def encode_text(self, texts: Texts) -> Encoding:
        check_texts(texts)
        tokens = Tokens(*self.text_encoder(texts.inputs, texts.mask))
        vector = self.global_branch.text(texts.inputs, texts.mask, tokens)
        vector = self.corrected(vector, "text")
        return Encoding(vector=vector, tokens=tokens.tokens, mask=tokens.mask)

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        check_encodings(images=images, texts=texts)
        return cosine_scores(images.vector, texts.vector)

    def rerank(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        if self.fusion is None or not self.has_second_stage:
            return super().rerank(images, texts, pairs)
        sides = self._sides(images, texts)
        if self.matching_head is None:
            return self.fusion.pair_score(*sides, pairs=pairs)
        return at_least_float32(self.matching_head(*self.fusion(*sides, pairs=pairs)))

    def _sides(self, images: Encoding, texts: Encoding) -> tuple[Tensor, ...]:
        """What a fusion encoder reads of both sides."""
        vectors = map(self.uncorrected, (images.vector, texts.vector))
        image, text = map(self.global_branch.attended, vectors)
        return image, images.tokens, images.mask, text, texts.tokens, texts.mask

    @property
    def has_second_stage(self) -> bool:
        return self.fusion is not None and self.weights["fusion"] > 0

    def explain(self, image: Encoding, text: Encoding) -> list[Explanation]:
        """Shares of words and regions in the global score, and the attention of the fusion.

        The global vectors are sums over tokens, so the cosine is a sum over their pairs; the part
        of a ``mean_path``, which has no tokens, is left out, and so is a ``hubness_correction``.
        """
        check_pair(image, text)
        regions, words = Tokens(image.tokens, image.mask), Tokens(text.tokens, text.mask)
        shares = self.global_branch.shares(regions, words)[0]
        part = "" if self.global_branch.mean_path is None else "attended part of the "
        score = "global score" if self.hubness_correction is None else "uncorrected global score"
        maps = token_maps([shares], self.image_encoder)
        found = [Explanation("shares", f"{part}{score}", maps, float(shares.sum()))]
        attention = getattr(self.fusion, "attention", None)
        if attention is not None and self.has_second_stage:
            looks = attention(*self._sides(image, text))
            pair = torch.zeros(1, 2, dtype=torch.int64, device=image.device)
            maps, fused = token_maps([looks[0]], self.image_encoder), self.rerank(image, text, pair)
            found.append(Explanation("attention", "fusion score", maps, float(fused)))
        return found

    @property
    def second_stage_is_trained(self) -> bool:
        first = self.fusion_start
        return self.has_second_stage and (
            first is None or not self.trained_less_than(first + 1, "step")
        )

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        if len(batch.texts) != self.views * len(batch.images):
            raise InputError(
                f"the batch holds {len(batch.texts)} texts for {len(batch.images)} images; "
                f"expected views={self.views} an image (caption_views of the data)"
            )
        if self.fusion_start is not None and not self.trained_less_than(self.fusion_start, "step"):
            return self._second_stage_loss(batch)
        fuses = self.weights["fusion"] and self.fusion_start is None
        regions = self.image_encoder(batch.images.features, batch.images.mask)
        words = self.text_encoder(batch.texts.inputs, batch.texts.mask)
        image = self.global_branch.image(batch.images.features, batch.images.mask, regions)
        text = self.global_branch.text(batch.texts.inputs, batch.texts.mask, words)
        if len(image) < len(text):  # in evaluation mode all views of an image are one
            image = image.repeat_interleave(self.views, dim=0)
        dim, own = image.shape[1], len(batch.images)
        # All that the loss needs of the other processes, a row an image: the views side by side.
        sides: dict[str, Tensor | None] = {
            "image": image.reshape(own, -1),
            "text": text.reshape(own, -1),
        }
        if fuses:  # which takes one view of each pair
            (image_tokens, image_mask), (text_tokens, text_mask) = regions, words
            sides |= {"image_tokens": image_tokens, "text_tokens": text_tokens[:: self.views]}
            sides |= {"image_mask": image_mask}
            sides |= {"text_mask": None if text_mask is None else text_mask[:: self.views]}
        batch_sides = Encoding(ids=batch.image_ids, **sides).gathered(sizes=batch.sizes)
        image, text = batch_sides.image.reshape(-1, dim), batch_sides.text.reshape(-1, dim)
        ids = batch_sides.ids
        view_ids = ids.repeat_interleave(self.views, output_size=len(image))
        scores = cosine_scores(image, text)
        terms: dict[str, Tensor] = {}
        if self.weights["triplet"]:
            self.choose_negatives()
            terms["triplet"] = self.triplet(scores, view_ids[:, None] == view_ids)
        if self.weights["hect"]:
            terms["hect"] = self.hect(image, text, view_ids)
        if self.weights["distillation"]:
            taught = self._teach(batch, view_ids)
            terms["distillation"] = self.distillation(image, text, *taught, *self.queue.latest())
        if fuses:
            fields = batch_sides.items()
            images, texts = (
                Encoding(
                    vector=self.corrected(vectors[:: self.views], side),
                    tokens=fields[f"{side}_tokens"],
                    mask=fields.get(f"{side}_mask"),
                )
                for side, vectors in (("image", image), ("text", text))
            )
            terms["fusion"] = self._fusion_loss(images, texts, ids)
        terms["loss"] = sum(
            (self.weights[name] * term for name, term in terms.items()), scores.new_zeros(())
        )
        return terms

    # ------------------------------------------------------------------------------- training

    def on_fit_start(self) -> None:
        super().on_fit_start()
        for miner in callbacks_of(self.trainer, HardNegativeMiner):
            if miner.group_size != self.fusion_group:
                raise InputError(
                    f"fusion_group is {self.fusion_group}; expected {miner.group_size}, the "
                    "group_size of HardNegativeMiner"
                )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if len(self.queue) and self._taught is not None:
            self.queue.push(*self._taught)
        self._taught = None
        return loss

    @torch.no_grad()
    def _teach(self, batch: Batch, view_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's vectors of all views, and the images they belong to."""
        teacher = teacher_of(self)
        regions = teacher.image_encoder(batch.images.features, batch.images.mask)
        words = teacher.text_encoder(batch.texts.inputs, batch.texts.mask)
        image = teacher.global_branch.image(batch.images.features, batch.images.mask, regions)
        image = image.repeat_interleave(self.views, dim=0)  # the teacher has one view
        text = teacher.global_branch.text(batch.texts.inputs, batch.texts.mask, words)
        sizes = batch.sizes and [self.views * size for size in batch.sizes]
        image, text = gather_all([image, text], sizes=sizes)
        self._taught = image, text, view_ids
        return self._taught

    def _second_stage_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The fusion loss alone, on the encodings that a frozen global branch gives."""
        first_views = batch.texts.rows(slice(None, None, self.views))
        image = self.encode_image(batch.images).gathered(sizes=batch.sizes)
        text = self.encode_text(first_views).gathered(sizes=batch.sizes)
        term = self._fusion_loss(image, text, gather(batch.image_ids, sizes=batch.sizes))
        return {"fusion": term, "loss": self.weights["fusion"] * term}

    def _fusion_loss(self, image: Encoding, text: Encoding, ids: Tensor) -> Tensor:
        """Loss of the fusion branch on pairs of the global batch: n images, their captions."""
        size = self.fusion_group
        if size is None:
            # Not corrected: what is trained would depend on when a validation filled the bank.
            vectors = map(self.uncorrected, (image.vector, text.vector))
            pairs, compared = hardest_pairs(cosine_scores(*vectors), ids, self.fusion_pairs)
        elif len(ids) % size:
            raise InputError(
                f"the global batch has {len(ids)} pairs; expected a multiple of fusion_group={size}"
            )
        else:
            pairs, compared = pairs_of_groups(ids, size, self.fusion_pairs)
        shares = pairs.tensor_split(world_size())  # of every process
        scores = self.rerank(image, text, shares[rank()])
        scores = gather(scores, sizes=[len(share) for share in shares])[compared]
        is_true = (ids[pairs[:, 0]] == ids[pairs[:, 1]])[compared]
        if self.fusion_loss is not None:
            loss: Tensor = self.fusion_loss(scores, is_true)
            return loss
        hect = self.hect if isinstance(self.hect, HECTLoss) else HECTLoss()
        return hect.from_similarities(scores[:, 0], scores[:, 1:], ~is_true[:, 1:])


def _check_weights(weights: Mapping[str, float], fusion_start: int | None) -> None:
    """Raise unless some loss is trained, and in two stages one of either branch."""
    check_non_negative(**{f"{name}_weight": weight for name, weight in weights.items()})
    if not any(weights.values()):
        raise InputError("the weights of all losses are 0; expected one above 0")
    if fusion_start is None:
        return
    check_count(fusion_start=fusion_start)
    if not weights["fusion"]:
        raise InputError(
            f"fusion_start is {fusion_start}, but there is no fusion loss; expected a fusion "
            "encoder and a fusion_weight above 0"
        )
    if not any(weights[name] for name in _GLOBAL_LOSSES):
        raise InputError(
            f"fusion_start is {fusion_start}, but no other loss trains before it; expected a "
            "weight above 0, or null"
        )


def _is_learnt(module: nn.Module | None) -> bool:
    return module is not None and next(module.parameters(), None) is not None
