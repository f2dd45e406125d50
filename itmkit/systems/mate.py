"""MATE: a momentum-augmented transformer encoder over global and local features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from itmkit._internals import callbacks_of
from itmkit.callbacks import FreezeUntil, HardNegativeMiner, MomentumTeacher
from itmkit.checks import InputError, check_count, check_non_negative
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
from itmkit.nn import ExternalSpatialAttention, MatchingHead, MeanPath, Tokens, l2_normalize
from itmkit.nn.contract import Fusion, common_width
from itmkit.nn.pooling.external_attention import pooled_shares
from itmkit.nn.weights import freeze_unused
from itmkit.precision import at_least_float32
from itmkit.retrieval import Encoding
from itmkit.retrieval.encoding import check_encodings
from itmkit.systems.explanation import Explanation, check_pair, token_maps
from itmkit.systems.matcher import Matcher, cosine_scores

#: callbacks of models, which may still be a Trainer's when it is used again
_MADE: WeakSet[Callback] = WeakSet()
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
        fusion_weight: see ``triplet_weight``.
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

    queue_image: Tensor
    queue_text: Tensor
    queue_ids: Tensor

    score_fields = ("vector",)
    #: buffers of a run, not of its weights
    training_state = ("queue_image", "queue_text", "queue_ids")

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
        dim = common_width(image_encoder=image_encoder, text_encoder=text_encoder, fusion=fusion)
        if self.rerank_top_k and fusion is None:
            raise InputError(f"rerank_top_k is {self.rerank_top_k}, but there is no fusion encoder")
        of_fusion = {
            "matching_head": matching_head,
            "fusion_loss": fusion_loss,
            "fusion_pairs": fusion_pairs,
        }
        given = [name for name, value in of_fusion.items() if value is not None]
        if fusion is None and given:
            raise InputError(f"{given[0]} is given, but there is no fusion encoder")
        self.triplet = triplet or GroupTripletLoss(group_size=views)
        self.hect = hect or HECTLoss()
        self.distillation = distillation or MomentumDistillationLoss()
        if fusion is not None and not isinstance(fusion, Fusion):
            raise InputError(
                f"fusion is a {type(fusion).__name__} without pair_score; expected a fusion "
                "encoder as itmkit.nn.contract describes it"
            )
        if fusion_loss is None and matching_head is not None:
            fusion_loss = SigLIPLoss(1.0, 0.0, learnt=False)
        elif fusion_loss is None and fusion_group is not None:
            fusion_loss = RowCrossEntropyLoss()
        self.fusion_loss = fusion_loss
        check_kind("scores", triplet=self.triplet)
        check_kind("vectors", hect=self.hect)
        check_kind("teacher", distillation=self.distillation)
        if self.fusion_loss is not None:
            check_kind("scores", fusion_loss=self.fusion_loss)
        if isinstance(self.triplet, GroupTripletLoss) and self.triplet.group_size != views:
            raise InputError(
                f"triplet.group_size is {self.triplet.group_size}; expected {views}, as views"
            )
        if triplet_weight:
            self.warm_up(triplet=self.triplet)
        self.weights = {
            "triplet": triplet_weight,
            "hect": hect_weight,
            "distillation": distillation_weight,
            "fusion": fusion_weight if fusion is not None else 0.0,
        }
        check_count(0, queue_size=queue_size)
        check_non_negative(**{f"{name}_weight": weight for name, weight in self.weights.items()})
        if not any(self.weights.values()):
            raise InputError("the weights of all losses are 0; expected one above 0")
        if fusion_pairs is not None:
            check_count(fusion_pairs=fusion_pairs)
        if fusion_group is not None:
            check_count(2, fusion_group=fusion_group)
        if fusion_start is not None:
            check_count(fusion_start=fusion_start)
            if not self.weights["fusion"]:
                raise InputError(
                    f"fusion_start is {fusion_start}, but there is no fusion loss; expected a "
                    "fusion encoder and a fusion_weight above 0"
                )
        self.views = views
        self.fusion_pairs = fusion_pairs
        self.fusion_group = fusion_group
        self.fusion_start = fusion_start
        self.momentum = momentum
        self.image_encoder = image_encoder
        self.text_encoder = text_encoder
        at_mean = mean_path is not None
        self.image_pool = ExternalSpatialAttention(
            dim, num_views=views, drop=token_drop, start_at_mean=at_mean
        )
        self.text_pool = ExternalSpatialAttention(dim, num_views=1, drop=0.0, start_at_mean=at_mean)
        self.mean_path = mean_path
        if mean_path is not None:
            mean_path.complete(image_encoder, text_encoder)
            dim += mean_path.dim
        self.fusion = fusion
        self.matching_head = matching_head
        self._taught: tuple[Tensor, Tensor, Tensor] | None = None
        self._freeze_unused()
        self.register_buffer("queue_image", torch.zeros(queue_size, dim))
        self.register_buffer("queue_text", torch.zeros(queue_size, dim))
        self.register_buffer("queue_ids", torch.full((queue_size,), -1))
        self._filled: int | None = None  # rows of the queue; None where they are to be counted
        self.register_load_state_dict_post_hook(_count_anew)  # type: ignore[no-untyped-call]

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
            token = next(self.fusion.parameters()).new_ones(1, self.image_pool.dim)
            means = token.new_ones(1, 0 if self.mean_path is None else self.mean_path.dim)
            side = _encoding(torch.cat([means, token], dim=1), token[:, None], None)
            pair = torch.zeros(1, 2, dtype=torch.int64, device=token.device)
            with evaluation_mode(self.fusion):
                freeze_unused(self.fusion, self.rerank(side, side, pair))

    def configure_callbacks(self) -> Sequence[Callback]:
        """The momentum teacher, where something is learnt from it; what freezes each stage."""
        branch = ["image_encoder", "text_encoder", "image_pool", "text_pool"]
        branch += ["mean_path"] if self.mean_path is not None else []
        callbacks: list[Callback] = []
        if self.weights["distillation"]:
            callbacks.append(MomentumTeacher(self.momentum, list(branch)))
        if self.fusion_start is not None:
            heads = [name for name in _FUSION_BRANCH if _is_learnt(getattr(self, name))]
            branch += [name for name in _GLOBAL_LOSSES if _is_learnt(getattr(self, name))]
            callbacks.append(FreezeUntil(heads, self.fusion_start, "step"))
            callbacks.append(FreezeUntil(branch, None, "step", since=self.fusion_start))
        self._check_callbacks(callbacks)
        _MADE.update(callbacks)
        return callbacks

    def _check_callbacks(self, own: Sequence[Callback]) -> None:
        """Raise where Lightning would drop the Trainer's, of the same class as one of the model's.

        Raises:
            InputError: with the class.
        """
        try:
            trainer = self.trainer
        except RuntimeError:  # asked for without a Trainer
            return
        for kind in {type(callback) for callback in own}:
            if any(given not in _MADE for given in callbacks_of(trainer, kind)):
                raise InputError(
                    f"trainer.callbacks has a {kind.__name__}, and MATE makes its own "
                    "(momentum, distillation_weight, fusion_start); expected one of them"
                )

    # ------------------------------------------------------------------------------- methods

    def encode_image(self, images: Images) -> Encoding:
        check_images(images)
        tokens = self.image_encoder(images.features, images.mask)
        return _encoding(self._image_vectors(self, images, tokens), *tokens)

    def encode_text(self, texts: Texts) -> Encoding:
        check_texts(texts)
        tokens = self.text_encoder(texts.inputs, texts.mask)
        return _encoding(self._text_vectors(self, texts, tokens), *tokens)

    def _image_vectors(self, parts: Any, images: Images, tokens: Tokens) -> Tensor:
        """Unit vectors of all views, by the layers of this model or of its teacher."""
        attended = l2_normalize(parts.image_pool(*tokens))
        if self.mean_path is None:
            return attended
        mean = parts.mean_path.image(images.features, images.mask, Tokens(*tokens))
        if parts.image_pool.training and self.views > 1:  # which has pooled so many views
            mean = mean.repeat_interleave(self.views, dim=0)
        joined: Tensor = parts.mean_path.join(mean, attended)
        return joined

    def _text_vectors(self, parts: Any, texts: Texts, tokens: Tokens) -> Tensor:
        attended = l2_normalize(parts.text_pool(*tokens))
        if self.mean_path is None:
            return attended
        mean = parts.mean_path.text(texts.inputs, texts.mask, Tokens(*tokens))
        joined: Tensor = parts.mean_path.join(mean, attended)
        return joined

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        check_encodings(images=images, texts=texts)
        return cosine_scores(images.vector, texts.vector)

    def rerank(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        if self.fusion is None:
            return super().rerank(images, texts, pairs)
        image, text = images.vector, texts.vector
        if self.mean_path is not None:
            image, text = self.mean_path.attended(image), self.mean_path.attended(text)
        sides = (image, images.tokens, images.mask, text, texts.tokens, texts.mask)
        if self.matching_head is None:
            return self.fusion.pair_score(*sides, pairs=pairs)
        return at_least_float32(self.matching_head(*self.fusion(*sides, pairs=pairs)))

    @property
    def has_second_stage(self) -> bool:
        return self.fusion is not None

    def explain(self, image: Encoding, text: Encoding) -> list[Explanation]:
        """Shares of words and regions in the global score, and the attention of the fusion.

        The global vectors are sums over tokens, so the cosine is a sum over their pairs; the part
        of a ``mean_path``, which has no tokens, is left out.
        """
        check_pair(image, text)
        regions, words = (image.tokens, image.mask), (text.tokens, text.mask)
        shares = pooled_shares(self.image_pool, *regions, self.text_pool, *words)[0]
        title, score = "global score", self.score(image, text)
        vectors = image.vector, text.vector
        if self.mean_path is not None:
            shares = shares * (1 - self.mean_path.share.detach())
            title, score = "attended part of the global score", shares.sum()
            vectors = self.mean_path.attended(vectors[0]), self.mean_path.attended(vectors[1])
        maps = token_maps([shares], self.image_encoder)
        found = [Explanation("shares", title, maps, float(score))]
        attention = getattr(self.fusion, "attention", None)
        if attention is not None:
            looks = attention(vectors[0], *regions, vectors[1], *words)
            pair = torch.zeros(1, 2, dtype=torch.int64, device=image.device)
            maps, score = token_maps([looks[0]], self.image_encoder), self.rerank(image, text, pair)
            found.append(Explanation("attention", "fusion score", maps, float(score)))
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
        image = self._image_vectors(self, batch.images, regions)
        text = self._text_vectors(self, batch.texts, words)
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
            terms["distillation"] = self.distillation(image, text, *taught, *self._queue())
        if fuses:
            fields = batch_sides.items()
            terms["fusion"] = self._fusion_loss(
                _encoding(image[:: self.views], fields["image_tokens"], fields.get("image_mask")),
                _encoding(text[:: self.views], fields["text_tokens"], fields.get("text_mask")),
                ids,
            )
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
        if len(self.queue_ids) and self._taught is not None:
            queues = (self.queue_image, self.queue_text, self.queue_ids)
            for queue, latest in zip(queues, self._taught, strict=True):
                queue.copy_(torch.cat([latest, queue])[: len(queue)])
            if self._filled is not None:
                self._filled = min(self._filled + len(self._taught[0]), len(self.queue_ids))
        self._taught = None
        return loss

    @torch.no_grad()
    def _teach(self, batch: Batch, view_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The teacher's vectors of all views, and the images they belong to."""
        teacher: Any = getattr(self, "teacher", None)  # set by MomentumTeacher
        if teacher is None:
            raise InputError(
                "distillation_weight is not 0, but there is no teacher: train with a Trainer, or "
                "use MomentumTeacher"
            )
        regions = teacher.image_encoder(batch.images.features, batch.images.mask)
        words = teacher.text_encoder(batch.texts.inputs, batch.texts.mask)
        image = self._image_vectors(teacher, batch.images, regions)  # one view
        image = image.repeat_interleave(self.views, dim=0)
        text = self._text_vectors(teacher, batch.texts, words)
        sizes = batch.sizes and [self.views * size for size in batch.sizes]
        image, text = gather_all([image, text], sizes=sizes)
        self._taught = image, text, view_ids
        return self._taught

    def _queue(self) -> tuple[Tensor, Tensor, Tensor] | tuple[()]:
        if self._filled is None:  # not in every step: a GPU would wait
            self._filled = int((self.queue_ids >= 0).sum())
        if not self._filled:
            return ()
        queues = (self.queue_image, self.queue_text, self.queue_ids)
        image, text, ids = (queue[: self._filled] for queue in queues)
        return image, text, ids

    def _second_stage_loss(self, batch: Batch) -> dict[str, Tensor]:
        """The fusion loss alone, on the encodings that a frozen global branch gives."""
        first = slice(None, None, self.views)
        texts, features = batch.texts, batch.texts.features
        texts = Texts(
            texts.ids[first], texts.mask[first], None if features is None else features[first]
        )
        image, text = self.encode_image(batch.images), self.encode_text(texts)
        ids = Encoding(ids=batch.image_ids).gathered(sizes=batch.sizes).ids
        term = self._fusion_loss(
            image.gathered(sizes=batch.sizes), text.gathered(sizes=batch.sizes), ids
        )
        return {"fusion": term, "loss": self.weights["fusion"] * term}

    def _fusion_loss(self, image: Encoding, text: Encoding, ids: Tensor) -> Tensor:
        """Loss of the fusion branch on the pairs of the global batch: n images, their captions."""
        if self.fusion_group is not None and self.fusion_loss is not None:
            return self._loss_of_groups(image, text, ids, self.fusion_group, self.fusion_loss)
        return self._loss_of_hardest(image, text, ids)

    def _loss_of_groups(
        self, image: Encoding, text: Encoding, ids: Tensor, size: int, loss: nn.Module
    ) -> Tensor:
        """On all pairs of each group of adjacent rows."""
        if len(ids) % size:
            raise InputError(
                f"the global batch has {len(ids)} pairs; expected a multiple of fusion_group={size}"
            )
        rows = torch.arange(len(ids), device=ids.device).view(-1, size)
        count = min(len(rows), max(1, (self.fusion_pairs or len(ids)) // size))
        rows = rows[torch.arange(count, device=ids.device) * len(rows) // count]
        pairs = torch.stack(torch.broadcast_tensors(rows[:, :, None], rows[:, None]), dim=-1)
        scores = self._shared_scores(image, text, pairs.reshape(-1, 2)).view(-1, size, size)
        is_true = ids[rows][:, :, None] == ids[rows][:, None]
        both = torch.cat([scores, scores.mT]).flatten(0, 1)  # a row an image, then a row a caption
        result: Tensor = loss(both, is_true.repeat(2, 1, 1).flatten(0, 1))
        return result

    def _shared_scores(self, image: Encoding, text: Encoding, pairs: Tensor) -> Tensor:
        """Pair scores, of which every process computes its share."""
        shares = pairs.tensor_split(world_size())
        scores = self.rerank(image, text, shares[rank()])
        return gather(scores, sizes=[len(share) for share in shares])

    def _loss_of_hardest(self, image: Encoding, text: Encoding, ids: Tensor) -> Tensor:
        """On true pairs and the pairs of the batch most easily taken for true."""
        candidates = cosine_scores(image.vector, text.vector).detach()
        candidates = candidates.masked_fill(ids[:, None] == ids, -torch.inf)
        n = len(candidates)
        count = min(n, self.fusion_pairs or n)
        anchors = torch.arange(count, device=candidates.device) * n // count
        hard_text = candidates.argmax(dim=1)[anchors]
        hard_image = candidates.argmax(dim=0)[anchors]
        pairs = torch.stack(
            [torch.cat([anchors, anchors, hard_image]), torch.cat([anchors, hard_text, anchors])], 1
        )
        true, *wrong = self._shared_scores(image, text, pairs).chunk(3)
        positive, negative = true.repeat(2), torch.cat(wrong)
        valid = (candidates.amax(dim=1) > -torch.inf)[anchors].repeat(2)
        if self.fusion_loss is None:
            core = self.hect if isinstance(self.hect, HECTLoss) else HECTLoss()
            return core.from_similarities(positive, negative[:, None], valid[:, None])
        # Where all captions are of one image, the pairs taken for wrong ones are true.
        is_true = torch.stack([torch.ones_like(valid), ~valid], dim=1)
        loss: Tensor = self.fusion_loss(torch.stack([positive, negative], dim=1), is_true)
        return loss


def _is_learnt(module: nn.Module | None) -> bool:
    return module is not None and next(module.parameters(), None) is not None


def _count_anew(mate: MATE, _: Any) -> None:
    mate._filled = None


def _encoding(vector: Tensor, tokens: Tensor, mask: Tensor | None) -> Encoding:
    return Encoding(vector=vector, tokens=tokens, mask=mask)
