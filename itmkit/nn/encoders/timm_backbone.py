"""A timm backbone as feature maps: what the encoders of pixels have in common."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, check_count, check_not_empty, did_you_mean, type_of
from itmkit.lazy_imports import import_timm
from itmkit.modes import evaluation_mode
from itmkit.nn.encoders.frozen import FreezableBackbone
from itmkit.nn.pooling.block_discriminability import discriminate_blocks
from itmkit.nn.pooling.feature_discriminability import FeatureDiscriminability
from itmkit.nn.weights import freeze_unused, load_weights
from itmkit.pretrained import Source, fetching, following_weights, stored_content


class TimmBackbone(FreezableBackbone):
    """Base of the encoders of pixels: a timm model, read after its stages or at its end.

    Args:
        model_name: a name that ``timm.create_model`` knows; or a module, of timm or with
            ``forward_features`` or a ``forward`` that gives a grid, whose parameters are trained
            where they have a gradient.
        stages: stages (of a ViT: blocks) to read, ascending, counted from 0 or from the end; None
            for the final features.
        stages_name: the argument that an error about ``stages`` names.
        pretrained: fetch timm's pretrained weights.
        checkpoint: local file with weights of the whole model, ``.safetensors`` or ``torch.save``.
        checkpoint_by_order: match the tensors of ``checkpoint`` by order and shape, not by name.
        image_size: height and width of the images, in pixels.
        model_args: further arguments of ``timm.create_model``.
        frozen: the backbone is never trained: no gradient, always in eval mode.
        block_discriminability: inserted by :func:`discriminate_blocks`; None for none.

    Attributes:
        backbone: the timm model; parameters that no map depends on are not trained.
        pretrained_source: of a model of the hub or a folder, for checkpoints; else None.
        channels: width of each map.
        grids: rows and columns of each map for images of ``image_size``.

    Raises:
        InputError: weights that do not fit, stages that do not exist, contradicting arguments.
        FileNotFoundError: there is no file ``checkpoint``.
    """

    def __init__(
        self,
        model_name: str | nn.Module,
        *,
        stages: Sequence[int] | None,
        stages_name: str,
        pretrained: bool,
        checkpoint: str | Path | None,
        checkpoint_by_order: bool,
        image_size: int,
        model_args: dict[str, Any] | None,
        frozen: bool,
        block_discriminability: FeatureDiscriminability | None = None,
    ) -> None:
        super().__init__(frozen=frozen)
        check_count(image_size=image_size)
        if pretrained and checkpoint is not None:
            raise InputError(f"checkpoint is {checkpoint}; expected None, as pretrained is true")
        if checkpoint_by_order and checkpoint is None:
            raise InputError("checkpoint_by_order is true; expected false without a checkpoint")
        given = isinstance(model_name, nn.Module)
        if given and (pretrained or model_args):
            raise InputError(
                f"pretrained is {pretrained} and model_args is {model_args}; expected False and "
                f"None, as model_name is a module, a {type(model_name).__name__}"
            )
        model_args = model_args or {}
        self.image_size = image_size
        self.pretrained_source: Source | None = None
        if isinstance(model_name, nn.Module):
            self.backbone = model_name
            self.in_channels: int = getattr(model_name, "in_chans", 3)
        else:
            pretrained &= not following_weights()
            self.backbone, self.pretrained_source = _build(model_name, pretrained, model_args)
            self.in_channels = model_args.get("in_chans", 3)
        if checkpoint is not None and not following_weights():
            load_weights(self.backbone, checkpoint, by_order=checkpoint_by_order)
        native = getattr(getattr(self.backbone, "patch_embed", None), "img_size", None)
        size = (image_size, image_size)
        resizable = hasattr(self.backbone, "set_input_size")
        if native is not None and tuple(native) != size and resizable:
            self.backbone.set_input_size(img_size=size)
        self.stages: list[int] | None = None
        if stages is not None:
            kind = type(self.backbone).__name__ if given else str(model_name)
            self.stages = self._check_stages(kind, stages, stages_name)
        if not given:  # a module that is given keeps all of its parts
            if self.stages is None:
                self.backbone.reset_classifier(0)
            else:
                self.backbone.prune_intermediate_layers(self.stages, prune_norm=True)
        self._set_gradients(given=given)
        self.channels: list[int] = []
        self.grids: list[tuple[int, int]] = []
        with evaluation_mode(self.backbone):
            self._probe(block_discriminability)
        self.backbone.train(not frozen)

    def maps(self, features: Tensor, mask: Tensor | None) -> list[Tensor]:
        """Feature maps ``(B, rows, columns, channels)`` of pixels, the mask checked to be None."""
        if features.ndim != 4 or features.shape[1] != self.in_channels:
            raise InputError(
                f"features has the shape {tuple(features.shape)}; expected pixels (batch, "
                f"{self.in_channels}, height, width)"
            )
        check_not_empty(features=features)
        if mask is not None:
            raise InputError(f"mask is {type_of(mask)}; expected None for pixels: none is padding")
        with self._grad():
            return self._maps(features)

    def position_embeddings(self, level: int) -> tuple[nn.Parameter, nn.Parameter]:
        """New embeddings of the rows and of the columns of a map."""
        (rows, columns), channels = self.grids[level], self.channels[level]
        return (
            nn.Parameter(0.02 * torch.randn(rows, 1, channels)),
            nn.Parameter(0.02 * torch.randn(1, columns, channels)),
        )

    def add_positions(self, level: int, grid: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Add embeddings of rows and columns to a map, which must have the size they are for."""
        if grid.shape[1:3] != self.grids[level]:
            raise InputError(
                f"features gives a grid of {tuple(grid.shape[1:3])} tokens; expected "
                f"{self.grids[level]}, that of image_size={self.image_size}, for positions"
            )
        return grid + row + column

    def _check_stages(self, kind: str, stages: Sequence[int], name: str) -> list[int]:
        if not hasattr(self.backbone, "forward_intermediates"):
            raise InputError(
                f"{name} is {list(stages)}, but {kind} has no "
                "forward_intermediates; expected a timm model, which has"
            )
        count = len(self.backbone.feature_info)
        for stage in stages:
            if not -count <= stage < count:
                raise InputError(f"{name} is {stage}; expected [{-count}, {count}) for {kind}")
        ascending = [stage % count for stage in stages]
        if not ascending or ascending != sorted(set(ascending)):
            raise InputError(f"{name} is {stages}; expected ascending stages, at least one")
        return ascending

    def _probe(self, block_discriminability: FeatureDiscriminability | None) -> None:
        """Find the widths and grids on a test image; stop training what no map depends on."""
        parameter = next(self.backbone.parameters())
        shape = (1, self.in_channels, self.image_size, self.image_size)
        pixels = torch.linspace(-1, 1, self.in_channels * self.image_size**2).view(shape)
        pixels = pixels.to(parameter)
        if block_discriminability is not None:
            discriminate_blocks(self.backbone, block_discriminability, pixels)
        with torch.set_grad_enabled(not self.frozen):
            maps = self._maps(pixels)
            if not self.frozen:
                freeze_unused(self.backbone, torch.stack([grid.sum() for grid in maps]))
        for _, rows, columns, channels in (grid.shape for grid in maps):
            self.grids.append((rows, columns))
            self.channels.append(channels)

    def _maps(self, pixels: Tensor) -> list[Tensor]:
        model = self.backbone
        if self.stages is not None:
            maps = model.forward_intermediates(
                pixels, indices=self.stages, stop_early=True, intermediates_only=True
            )
            return [grid.permute(0, 2, 3, 1) for grid in maps]
        out: Tensor = getattr(model, "forward_features", model)(pixels)
        if out.ndim == 4:
            channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
            return [out if channels_last else out.permute(0, 2, 3, 1)]
        if out.ndim != 3:
            raise InputError(
                f"model_name gives features of the shape {tuple(out.shape)}; expected a grid"
            )
        out = out[:, getattr(model, "num_prefix_tokens", 0) :]
        if hasattr(getattr(model, "patch_embed", None), "dynamic_feat_size"):
            rows, columns = model.patch_embed.dynamic_feat_size(pixels.shape[-2:])
        elif pixels.shape[-2] != pixels.shape[-1]:
            raise InputError(
                f"features are {pixels.shape[-2]} x {pixels.shape[-1]} pixels; expected a square, "
                "for which alone the grid of this model is known"
            )
        else:
            rows = columns = round(out.shape[1] ** 0.5)
        if rows * columns != out.shape[1]:
            raise InputError(f"model_name gives {out.shape[1]} tokens; expected a square grid")
        return [out.unflatten(1, (rows, columns))]


def _build(
    model_name: str, pretrained: bool, model_args: dict[str, Any]
) -> tuple[nn.Module, Source | None]:
    timm = import_timm()
    from timm.models import load_model_config_from_hf

    def create(name: str, **options: Any) -> nn.Module:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **(options | model_args))
        return model

    place, colon, name = model_name.partition(":")
    if not colon:
        if not timm.is_model(model_name.split(".")[0]):
            similar = did_you_mean(model_name, timm.list_models())
            raise InputError(
                f"model_name is {model_name!r}; expected a model that timm knows{similar}"
            )
        known = timm.get_pretrained_cfg(model_name) if pretrained else None
        needed = fetching(
            "pretrained is true and model_name",
            model_name,
            weights_of=None if known is None else known.hf_hub_id,
        )
        with needed if pretrained else nullcontext():
            return create(model_name), None
    content = stored_content("timm", model_name)
    if content is not None:
        config, architecture, arguments = content
        model = create(architecture, pretrained_cfg=config, **arguments)
        return model, Source("timm", model_name, content)
    with fetching("model_name", name if place == "local-dir" else model_name):
        model = create(model_name)
        if place == "local-dir":  # nothing is fetched of it
            return model, None
        content = json.loads(json.dumps(load_model_config_from_hf(name)))
    return model, Source("timm", model_name, content)
