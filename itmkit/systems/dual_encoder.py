"""Any CLIP-like model of transformers as a system: zero-shot search, evaluation, fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from itmkit._internals import data_module_of
from itmkit.callbacks import MomentumTeacher
from itmkit.callbacks.momentum_teacher import teacher_of
from itmkit.checks import InputError, check_non_negative, check_share
from itmkit.data.batch import Batch, Images, Texts, check_images, check_texts
from itmkit.data.preprocessing import Preprocessing
from itmkit.distributed import gather_all
from itmkit.losses import MomentumDistillationLoss
from itmkit.losses.functional import info_nce_loss, siglip_loss
from itmkit.losses.kind import check_kind
from itmkit.nn import ClipModel, HubnessCorrection, l2_normalize
from itmkit.nn.encoders.transformer_backbone import ModelConfig
from itmkit.retrieval import Encoding
from itmkit.retrieval.encoding import check_encodings
from itmkit.systems.matcher import Matcher, check_one_caption, cosine_scores
from itmkit.systems.own_callbacks import own_callbacks


class DualEncoder(Matcher):
    r"""Two towers of a CLIP-like model: CLIP, SigLIP, SigLIP 2, ALIGN, Chinese-CLIP and others.

    The score of a pair is the logit of the model, the cosine of the two vectors times a learnt
    scale, plus a learnt bias where the model has one:

    .. math:: S_{ij} = s \cos(v_i, t_j) + b

    Without any training it evaluates and searches as the model does. Images are pixels as the model
    was trained with (:meth:`itmkit.data.Preprocessing.for_transformers`); a run on others is warned
    of.

    Radford et al., Learning Transferable Visual Models From Natural Language Supervision, ICML
    2021; Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023. Differs from the
    released code of CLIP: the scale is not kept below 100, and other true pairs of a batch are no
    negatives.

    Args:
        name_or_path: a model name of the hub, or a local folder, to take pretrained weights from;
            or a module, such as a transformers model or one with LoRA.
        config: instead of it, a config with its ``model_type`` (a dict, a JSON file, or a config
            object of transformers), to start from random weights.
        frozen: the model is never trained: for evaluation and search.
        pad_id: see :class:`itmkit.nn.ClipModel`.
        loss: any loss of :mod:`itmkit.losses`: of scores, which gets the cosines, or of vectors,
            which gets these; the model's scale and bias are then kept. None: the loss the model was
            trained by, of its logits: the sigmoid loss if it has a bias, else CLIP's.
        distillation: loss against the momentum teacher, of the arguments of
            :class:`MomentumDistillationLoss`, which it is if None.
        distillation_weight: weight of ``distillation``; 0: there is no teacher.
        momentum: of the teacher, in [0, 1].
        hubness_correction: of the cosines, outside of the losses (ours); logits are then no longer
            those of the model. None: none.
        **kwargs: see :class:`Matcher`; there is no second stage.

    Raises:
        InputError: a model that is not found or does not encode images and texts, a loss that takes
            neither scores nor vectors, or a number out of its range.

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...              intermediate_size=8)
        >>> model = DualEncoder(config=dict(
        ...     model_type="clip", text_config=dict(vocab_size=20, **tower),
        ...     vision_config=dict(image_size=32, patch_size=16, **tower)))
        >>> ids = torch.tensor([[1, 2, 0]])
        >>> model(Images(torch.zeros(2, 3, 32, 32)), Texts(ids, ids > 0)).shape
        torch.Size([2, 1])
    """

    score_fields = ("vector",)

    def __init__(
        self,
        name_or_path: str | Path | nn.Module | None = None,
        *,
        config: dict[str, Any] | str | Path | ModelConfig | None = None,
        frozen: bool = False,
        pad_id: int | None = None,
        loss: nn.Module | None = None,
        distillation: nn.Module | None = None,
        distillation_weight: float = 0.0,
        momentum: float = 0.995,
        hubness_correction: HubnessCorrection | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_non_negative(distillation_weight=distillation_weight)
        check_share(momentum=momentum)
        if distillation is not None and not distillation_weight:
            raise InputError("distillation is given, but distillation_weight is 0; expected both")
        self.own_loss: Any = loss
        self._kind = None if loss is None else check_kind("scores", "vectors", loss=loss)
        self.clip = ClipModel(name_or_path, config=config, frozen=frozen, pad_id=pad_id)
        if loss is not None:
            for parameter in self.clip.logit_parameters():
                parameter.requires_grad_(False)
            self.warm_up(own_loss=loss)
        elif self.warmup:
            raise InputError(
                f"warmup is {self.warmup}; expected 0 without a loss that chooses its negatives"
            )
        self.distillation = distillation or MomentumDistillationLoss()
        check_kind("teacher", distillation=self.distillation)
        self.distillation_weight = distillation_weight
        self.momentum = momentum
        self.hubness_correction = hubness_correction
        if hubness_correction is not None:
            hubness_correction.complete(self.clip.dim)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        name = self.clip.name_or_path
        data = getattr(data_module_of(self.trainer), "preprocessing", None)
        if name is None or data is None:
            return
        with suppress(InputError):  # a model whose files are gone, or without an image processor
            own = Preprocessing.for_transformers(name, size=self.clip.image_size)
            if data != own:
                rank_zero_warn(f"{name} was trained with {own}, but the data has {data}")

    def configure_callbacks(self) -> Sequence[Callback]:
        """The momentum teacher, where something is learnt from it."""
        teacher = [MomentumTeacher(self.momentum, ["clip"])] if self.distillation_weight else []
        return own_callbacks(self, teacher, "momentum, distillation_weight")

    def encode_image(self, images: Images) -> Encoding:
        return Encoding(vector=self.corrected(self._image_vectors(images), "image"))

    def encode_text(self, texts: Texts) -> Encoding:
        return Encoding(vector=self.corrected(self._text_vectors(texts), "text"))

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        check_encodings(images=images, texts=texts)
        return self.clip.logits(cosine_scores(images.vector, texts.vector))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        check_one_caption(batch)
        # Not corrected: what is trained would depend on when a validation filled the bank.
        own = [
            self._image_vectors(batch.images),
            self._text_vectors(batch.texts),
            batch.image_ids,
        ]
        image, text, ids = gather_all(own, sizes=batch.sizes)
        terms = {"contrast": self._contrast(image, text, ids)}
        terms["loss"] = terms["contrast"]
        if self.distillation_weight:
            taught = gather_all(self._teach(batch), sizes=batch.sizes)
            terms["distillation"] = self.distillation(image, text, *taught, ids)
            terms["loss"] = terms["contrast"] + self.distillation_weight * terms["distillation"]
        return terms

    def _image_vectors(self, images: Images) -> Tensor:
        check_images(images)
        if images.mask is not None:
            raise InputError("images have a mask; expected pixels (n, 3, H, W) without one")
        return l2_normalize(self.clip.image_vectors(images.features))

    def _text_vectors(self, texts: Texts) -> Tensor:
        check_texts(texts)
        return l2_normalize(self.clip.text_vectors(texts.ids, texts.mask))

    def _contrast(self, image: Tensor, text: Tensor, ids: Tensor) -> Tensor:
        self.choose_negatives()
        cosines, positives = cosine_scores(image, text), ids[:, None] == ids
        value: Tensor
        if self._kind == "vectors":
            value = self.own_loss(image, text, ids)
        elif self._kind == "scores":
            value = self.own_loss(cosines, positives)
        elif self.clip.logit_bias is not None:
            value = siglip_loss(self.clip.logits(cosines), positives, temperature=1.0, bias=0.0)
        else:  # the mean of both directions
            value = info_nce_loss(self.clip.logits(cosines), positives, temperature=1.0) / 2
        return value

    @torch.no_grad()
    def _teach(self, batch: Batch) -> list[Tensor]:
        teacher = teacher_of(self)
        image = teacher.clip.image_vectors(batch.images.features)
        text = teacher.clip.text_vectors(batch.texts.ids, batch.texts.mask)
        return [l2_normalize(image), l2_normalize(text)]
