"""Pixels to a grid of tokens, through a timm backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itmkit.nn.weights import freeze_unused, load_weights


class TimmGrid(nn.Module):
    """The grid of any timm backbone as tokens, row by row.

    Convolutional, Swin-like and ViT backbones all work; class and register tokens are left out.
    The width becomes ``dim`` by a Linear and a LayerNorm, or by an injected ``projection``.

    Args:
        model_name: a name that ``timm.create_model`` knows.
        dim: width D of the tokens; None for the width of the backbone, or of ``projection``.
        pretrained: fetch timm's pretrained weights.
        checkpoint: local file with weights of the whole model, ``.safetensors`` or ``torch.save``.
        checkpoint_by_order: match the tensors of ``checkpoint`` by order and shape, not by name.
        image_size: height and width of the images, in pixels.
        out_index: -1 for the final features; otherwise the stage (of a ViT: the block) to stop
            after, counted from 0, or from the end when below -1.
        model_args: further arguments of ``timm.create_model``.
        positions: add a learned embedding of the row and one of the column to each cell of the
            backbone's grid, before the projection.
        frozen: the backbone is never trained: no gradient, always in eval mode.
        projection: an image encoder of tokens in place of Linear and LayerNorm, for instance
            :class:`RegionProjection`; with its width of output as attribute ``dim``.

    Shape:
        - features: pixels ``(B, 3, H, W)``, floating point, normalised as the backbone wants it
        - output: tokens ``(B, rows * columns, D)`` and None (there is no padding in a grid)

    Attributes:
        dim: width D of the tokens.
        grid: rows and columns for images of ``image_size``.

    Raises:
        ValueError: features that are not pixels, weights that do not fit, contradicting arguments.
        FileNotFoundError: there is no file ``checkpoint``.

    Example:
        >>> encoder = TimmGrid("test_resnet", 8, image_size=64).eval()
        >>> tokens, mask = encoder(torch.zeros(2, 3, 64, 64))
        >>> encoder.grid, tokens.shape
        ((2, 2), torch.Size([2, 4, 8]))
    """

    def __init__(
        self,
        model_name: str,
        dim: int | None = None,
        *,
        pretrained: bool = False,
        checkpoint: str | Path | None = None,
        checkpoint_by_order: bool = False,
        image_size: int = 224,
        out_index: int = -1,
        model_args: dict[str, Any] | None = None,
        positions: bool = False,
        frozen: bool = False,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if dim is not None and dim < 1:
            raise ValueError(f"dim must be at least 1 or None, got {dim}")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, got {image_size}")
        if pretrained and checkpoint is not None:
            raise ValueError(f"checkpoint must be None when pretrained is True, got {checkpoint}")
        if checkpoint_by_order and checkpoint is None:
            raise ValueError("checkpoint_by_order needs a checkpoint, got checkpoint=None")
        if projection is not None and dim not in (None, _width(projection)):
            raise ValueError(f"dim must be None when projection is given, got {dim}")
        self.image_size = image_size
        self.frozen = frozen
        self.stage: int | None = None
        self.backbone: Any = self._build(
            model_name, pretrained, checkpoint, checkpoint_by_order, out_index, model_args or {}
        )
        channels = self._probe()
        self.projection = projection
        if projection is not None:
            self.dim = _width(projection)
        elif dim is not None:
            self.projection = nn.Sequential(nn.Linear(channels, dim), nn.LayerNorm(dim))
            self.dim = dim
        else:
            self.dim = channels
        self.row_embedding: nn.Parameter | None = None
        self.column_embedding: nn.Parameter | None = None
        if positions:
            rows, columns = self.grid
            self.row_embedding = nn.Parameter(0.02 * torch.randn(rows, 1, channels))
            self.column_embedding = nn.Parameter(0.02 * torch.randn(1, columns, channels))
        self.train()

    def train(self, mode: bool = True) -> TimmGrid:
        """Set the mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        if features.ndim != 4 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"features must be pixels (batch, {self.in_channels}, height, width), "
                f"got shape {tuple(features.shape)}"
            )
        if mask is not None:
            raise ValueError("mask must be None for pixels: an image has no padded tokens")
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            grid = self._grid(features)  # (B, rows, columns, channels)
        if self.row_embedding is not None and self.column_embedding is not None:
            if grid.shape[1:3] != self.grid:
                raise ValueError(
                    f"features must give a grid of {self.grid} tokens, that of "
                    f"image_size={self.image_size}, got {tuple(grid.shape[1:3])}"
                )
            grid = grid + self.row_embedding + self.column_embedding
        tokens = grid.flatten(1, 2)
        if isinstance(self.projection, nn.Sequential):
            tokens = self.projection(tokens)
        elif self.projection is not None:
            tokens, _ = self.projection(tokens, None)
        return tokens, None

    def _build(
        self,
        model_name: str,
        pretrained: bool,
        checkpoint: str | Path | None,
        by_order: bool,
        out_index: int,
        model_args: dict[str, Any],
    ) -> Any:
        import timm

        if not timm.is_model(model_name.split(".")[0]) and ":" not in model_name:
            raise ValueError(f"model_name must be one that timm knows, got {model_name!r}")
        model: Any = timm.create_model(model_name, pretrained=pretrained, **model_args)
        if checkpoint is not None:
            load_weights(model, checkpoint, by_order=by_order)
        native = getattr(getattr(model, "patch_embed", None), "img_size", None)
        size = (self.image_size, self.image_size)
        if native is not None and tuple(native) != size and hasattr(model, "set_input_size"):
            model.set_input_size(img_size=size)
        self.in_channels: int = model_args.get("in_chans", 3)
        if out_index != -1:
            stages = len(model.feature_info)
            if not -stages <= out_index < stages:
                raise ValueError(
                    f"out_index must lie in [{-stages}, {stages}) for {model_name}, got {out_index}"
                )
            self.stage = out_index % stages
            model.prune_intermediate_layers([self.stage], prune_norm=True)
        else:
            model.reset_classifier(0)
        return model.requires_grad_(not self.frozen)

    def _probe(self) -> int:
        """Find the channels and the grid on a blank image; stop training what it does not use."""
        self.backbone.eval()
        size = (1, self.in_channels, self.image_size, self.image_size)
        parameter = next(self.backbone.parameters())
        with torch.set_grad_enabled(not self.frozen):
            grid = self._grid(torch.zeros(size, device=parameter.device, dtype=parameter.dtype))
            if not self.frozen:
                freeze_unused(self.backbone, grid)
        self.grid: tuple[int, int] = (grid.shape[1], grid.shape[2])
        return grid.shape[3]

    def _grid(self, pixels: Tensor) -> Tensor:
        model = self.backbone
        if self.stage is not None:
            maps = model.forward_intermediates(
                pixels, indices=[self.stage], stop_early=True, intermediates_only=True
            )
            return maps[0].permute(0, 2, 3, 1)
        out: Tensor = model.forward_features(pixels)
        if out.ndim == 4:
            channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
            return out if channels_last else out.permute(0, 2, 3, 1)
        if out.ndim != 3:
            raise ValueError(f"model_name must give a grid, got features {tuple(out.shape)}")
        out = out[:, getattr(model, "num_prefix_tokens", 0) :]
        if hasattr(getattr(model, "patch_embed", None), "dynamic_feat_size"):
            rows, columns = model.patch_embed.dynamic_feat_size(pixels.shape[-2:])
        else:
            rows = columns = round(out.shape[1] ** 0.5)
        if rows * columns != out.shape[1]:
            raise ValueError(f"model_name must give a grid, got {out.shape[1]} tokens")
        return out.unflatten(1, (rows, columns))


def _width(projection: nn.Module) -> int:
    dim = getattr(projection, "dim", None)
    if not isinstance(dim, int):
        raise ValueError(f"projection must have its width of output as dim, got dim={dim!r}")
    return dim
