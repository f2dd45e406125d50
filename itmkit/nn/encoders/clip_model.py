"""Any CLIP-like model of the transformers library: a vector an image, a vector a caption."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.modes import evaluation_mode
from itmkit.nn.encoders.frozen import FreezableBackbone
from itmkit.nn.encoders.transformer_backbone import (
    ModelConfig,
    attend_empty,
    build_transformer,
    check_length,
    text_part,
    text_sizes,
)
from itmkit.nn.encoders.transformer_image import (
    check_pixels,
    pixel_inputs,
    square_size,
    vision_part,
)
from itmkit.nn.functional import check_ids
from itmkit.nn.weights import freeze_unused
from itmkit.precision import at_least_float32, autocast_off
from itmkit.pretrained import fetch_tokenizer, stored_content


class ClipModel(FreezableBackbone):
    """A transformers model with ``get_image_features`` and ``get_text_features``.

    CLIP, SigLIP, SigLIP 2 (both forms), ALIGN, Chinese-CLIP, AltCLIP, MetaCLIP 2, GroupViT and
    models made of two (``vision-text-dual-encoder``) are tested: :meth:`logits` of the cosines are
    the ``logits_per_image`` of the model.

    A model that reads the padding of its captions (SigLIP takes its vector from the last of 64
    tokens, padded or not) gets every caption padded to its number of positions, and no mask. So the
    vector of a caption does not depend on the captions beside it. Differs from transformers: there
    the caller has to ask for this padding. Images have one square size; SigLIP 2's form for any
    size takes squares too.

    Args:
        name_or_path: a model name of the hub, or a local folder, to take pretrained weights from;
            or a module, such as a transformers model or one with LoRA, which is trained where it
            has gradients.
        config: instead of it, a config with its ``model_type`` (a dict, a JSON file, or a config
            object of transformers), to start from random weights.
        frozen: the model is never trained: no gradient, always in eval mode.
        pad_id: token that fills up the captions of a model that reads its padding; None: that of
            the tokenizer of ``name_or_path``, or else of the config.

    Attributes:
        backbone: the transformers model; parameters no vector depends on are not trained.
        vocab_size: number of token ids.
        dim: width of the vectors.
        max_length: most tokens of a caption, or None.
        image_size: height and width that images must have; None where others will do.
        name_or_path: as given, or None for a config or a module.
        pretrained_source: config of the model, for checkpoints; None for a module.

    Raises:
        InputError: not exactly one of ``name_or_path`` and ``config``, a model that is not found or
            does not encode both images and texts, or reads padding and has any number of positions;
            a ``pad_id`` that is no token, or of a model that does not read its padding; in use,
            pixels of another size, ids outside the vocabulary, more tokens than the model has
            positions.

    Example:
        >>> tower = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...              intermediate_size=8)
        >>> model = ClipModel(config=dict(
        ...     model_type="clip", projection_dim=4, text_config=dict(vocab_size=20, **tower),
        ...     vision_config=dict(image_size=32, patch_size=16, **tower)))
        >>> model.image_vectors(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 4])
        >>> ids = torch.tensor([[1, 2, 0]])
        >>> model.text_vectors(ids, ids > 0).shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        name_or_path: str | Path | nn.Module | None = None,
        *,
        config: dict[str, Any] | str | Path | ModelConfig | None = None,
        frozen: bool = False,
        pad_id: int | None = None,
    ) -> None:
        super().__init__(frozen=frozen)
        model, self.name_or_path, source = build_transformer(name_or_path, config)
        kind = type(model).__name__
        for method in ("get_image_features", "get_text_features"):
            if not hasattr(model, method):
                raise InputError(
                    f"name_or_path or config is of a {kind}, without {method}; expected a model of "
                    "images and texts, such as CLIP or SigLIP"
                )
        self.backbone = model
        self.pretrained_source = source
        self._set_gradients(given=isinstance(name_or_path, nn.Module))
        self.vocab_size, self.max_length = text_sizes(text_part(model), kind)
        self.image_size = square_size(vision_part(model))
        wanted = inspect.signature(text_part(model).forward).parameters
        self._takes_mask = "attention_mask" in wanted
        with evaluation_mode(model):
            self.dim, self._reads_padding = self._probe_texts()
            if not frozen:
                self._freeze_unused()
        if pad_id is not None and not self._reads_padding:
            raise InputError(
                f"pad_id is {pad_id}, but a {kind} does not read its padding; expected None"
            )
        if pad_id is not None and not 0 <= pad_id < self.vocab_size:
            raise InputError(f"pad_id is {pad_id}; expected a token, 0 to {self.vocab_size - 1}")
        self.pad_id = 0
        if self._reads_padding:
            if self.max_length is None:
                raise InputError(
                    f"name_or_path or config is of a {kind}, which reads the padding of its "
                    "captions and has any number of positions; expected a fixed number, "
                    "max_position_embeddings of its config"
                )
            self.pad_id = self._find_pad_id(name_or_path) if pad_id is None else pad_id
            if source is not None:  # so that a checkpoint says it
                source.content["text_config"]["pad_token_id"] = self.pad_id
        model.train(not frozen)

    def image_vectors(self, features: Tensor) -> Tensor:
        """Vectors ``(n, D)``, not normalised, of pixels ``(n, 3, H, W)``."""
        check_pixels(features, self.image_size)
        inputs = pixel_inputs(vision_part(self.backbone), features)
        return self._pooled(self.backbone.get_image_features(**inputs))

    def text_vectors(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Vectors ``(m, D)``, not normalised, of token ids ``(m, L)`` with a bool mask."""
        check_ids(ids, mask, self.vocab_size)
        limit = self.max_length
        if limit is not None and ids.shape[1] > limit:
            if mask[:, limit:].any():
                check_length(ids.shape[1], limit)
            ids, mask = ids[:, :limit], mask[:, :limit]
        ids = ids.masked_fill(~mask, self.pad_id)
        if self._reads_padding and limit is not None:
            ids = nn.functional.pad(ids, (0, limit - ids.shape[1]), value=self.pad_id)
            return self._text(ids, None)
        return self._text(ids, attend_empty(mask))

    def logits(self, cosines: Tensor) -> Tensor:
        """Scores as the model was trained on them: cosines × its scale + its bias, fp32."""
        with autocast_off(cosines):
            if hasattr(self.backbone, "logit_scale"):
                cosines = cosines * at_least_float32(self.backbone.logit_scale).exp()
            elif hasattr(self.backbone, "temperature"):
                cosines = cosines / at_least_float32(self.backbone.temperature)
            bias = self.logit_bias
            return cosines if bias is None else cosines + at_least_float32(bias)

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to scaled cosines, in models that were trained by a sigmoid loss."""
        bias: Tensor | None = getattr(self.backbone, "logit_bias", None)
        return bias

    def logit_parameters(self) -> list[nn.Parameter]:
        """The parameters that turn cosines into logits."""
        names = ("logit_scale", "temperature", "logit_bias")
        found = [getattr(self.backbone, name, None) for name in names]
        return [one for one in found if isinstance(one, nn.Parameter)]

    def _text(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        inputs = {"input_ids": ids}
        if mask is not None and self._takes_mask:
            inputs["attention_mask"] = mask.long()
        return self._pooled(self.backbone.get_text_features(**inputs))

    @staticmethod
    def _pooled(out: Any) -> Tensor:
        vectors: Any = out if isinstance(out, Tensor) else out.pooler_output
        if not isinstance(vectors, Tensor) or vectors.ndim != 2:
            raise InputError("the model gives no vector an image or caption; expected (n, D)")
        return vectors

    def _device(self) -> torch.device:
        device: torch.device = next(self.backbone.parameters()).device
        return device

    @torch.no_grad()
    def _probe_texts(self) -> tuple[int, bool]:
        """Width of the vectors, and whether a caption's changes with padding that is masked."""
        ids = torch.zeros(1, 4, dtype=torch.long, device=self._device())
        ids[0, 1] = 1
        mask = torch.arange(4, device=ids.device)[None, :] < 2
        short, long = self._text(ids[:, :2], mask[:, :2]), self._text(ids, mask)
        same = torch.allclose(short, long, rtol=1e-2, atol=1e-3 * float(short.abs().max()))
        return short.shape[1], not same

    @torch.enable_grad()
    def _freeze_unused(self) -> None:
        size, device = self.image_size or 64, self._device()
        dtype = next(self.backbone.parameters()).dtype
        pixels = torch.linspace(-1, 1, 3 * size**2, dtype=dtype, device=device)
        ids = torch.arange(2, device=device)[None, :]
        kept = [one for one in self.logit_parameters() if one.requires_grad]
        image = self.image_vectors(pixels.view(1, 3, size, size))
        text = self._text(ids, torch.ones_like(ids, dtype=torch.bool))
        freeze_unused(self.backbone, image.sum() + text.sum())
        for parameter in kept:
            parameter.requires_grad_(True)

    def _find_pad_id(self, name_or_path: str | Path | nn.Module | None) -> int:
        config = self.backbone.config.text_config
        pad_id = config.pad_token_id
        stored = stored_content("transformers", str(name_or_path)) is not None
        if self.name_or_path is not None and not stored:
            # The config of SigLIP 2 has a pad token that is not its tokenizer's.
            pad_id = fetch_tokenizer(str(name_or_path), self.name_or_path).pad_token_id
        if pad_id is None:
            raise InputError("pad_id is None; expected the pad token of the model's tokenizer")
        return int(pad_id)
