"""Pixels to a grid of tokens, through an image model of the transformers library."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, check_not_empty, check_optional_count
from itmkit.modes import evaluation_mode
from itmkit.nn.contract import Tokens
from itmkit.nn.encoders.frozen import FreezableBackbone
from itmkit.nn.encoders.transformer_backbone import ModelConfig, build_transformer
from itmkit.nn.layers.linear import Linear
from itmkit.nn.weights import freeze_unused
from itmkit.pretrained import Source


class TransformerImage(FreezableBackbone):
    """The patches of a transformers image model as tokens, row by row.

    Of a model of several parts it is the image encoder: the vision model of a CLIP or SigLIP.
    Class tokens are left out. The width becomes ``dim`` by a Linear and a LayerNorm.

    Args:
        name_or_path: a model name of the hub, or a local folder, to take pretrained weights from;
            or a module, such as a transformers model, which is trained where it has gradients.
        config: instead of it, a config with its ``model_type`` (a dict, a JSON file, or a config
            object of transformers), to start from random weights.
        dim: width D of the tokens; None for the width of the model, unprojected.
        image_size: height and width of the images, in pixels; None: that of the model.
        frozen: the model is never trained: no gradient, always in eval mode.

    Shape:
        - features: pixels ``(B, 3, image_size, image_size)``, normalised as the model wants it
        - output: tokens ``(B, rows * columns, D)`` and None (there is no padding in a grid)

    Attributes:
        dim: width D of the tokens.
        grid: rows and columns.
        backbone: the transformers model; parameters no token depends on are not trained.
        pretrained_source: config of the model, for checkpoints; None for a module.

    Raises:
        InputError: not exactly one of ``name_or_path`` and ``config``, a model that is not found or
            not one of images, or that gives no grid; in use, pixels of another size.

    Example:
        >>> import torch
        >>> encoder = TransformerImage(dim=8, config=dict(
        ...     model_type="clip_vision_model", image_size=32, patch_size=16, hidden_size=8,
        ...     num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
        >>> tokens, mask = encoder(torch.zeros(2, 3, 32, 32))
        >>> encoder.grid, tokens.shape
        ((2, 2), torch.Size([2, 4, 8]))
    """

    def __init__(
        self,
        name_or_path: str | Path | nn.Module | None = None,
        *,
        config: dict[str, Any] | str | Path | ModelConfig | None = None,
        dim: int | None = None,
        image_size: int | None = None,
        frozen: bool = False,
    ) -> None:
        super().__init__(frozen=frozen)
        check_optional_count(dim=dim)
        self.name_or_path: str | None
        self.pretrained_source: Source | None
        model, self.name_or_path, self.pretrained_source = build_transformer(name_or_path, config)
        self._kind = type(model).__name__
        self.backbone = vision_part(model)
        own = square_size(self.backbone)
        if own is None:
            own = _config(self.backbone).image_size if image_size is None else image_size
        if image_size not in (None, own):
            raise InputError(f"image_size is {image_size}; expected {own}, that of the model")
        self.image_size: int = own
        self._set_gradients(given=isinstance(name_or_path, nn.Module))
        with evaluation_mode(self.backbone):
            rows, columns, width = self._probe()
        self.grid = (rows, columns)
        self.dim: int = width if dim is None else dim
        self.projection = (
            nn.Identity() if dim is None else nn.Sequential(Linear(width, dim), nn.LayerNorm(dim))
        )
        self.backbone.train(not frozen)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tokens:
        if mask is not None:
            raise InputError(f"mask is of shape {tuple(mask.shape)}; expected None for pixels")
        check_pixels(features, self.image_size)
        with self._grad():
            tokens = self._map(features).flatten(1, 2)
        return Tokens(self.projection(tokens))

    def _map(self, pixels: Tensor) -> Tensor:
        """The last hidden state ``(B, rows, columns, width)``."""
        hidden: Tensor = self.backbone(**pixel_inputs(self.backbone, pixels)).last_hidden_state
        if hidden.ndim == 4:  # a convolutional model
            return hidden.permute(0, 2, 3, 1)
        patch = getattr(_config(self.backbone), "patch_size", None)
        side = self.image_size // patch if isinstance(patch, int) else math.isqrt(hidden.shape[1])
        if hidden.ndim != 3 or hidden.shape[1] < side**2:
            raise InputError(f"{self._kind} gives {tuple(hidden.shape)}; expected a grid of tokens")
        hidden = hidden[:, hidden.shape[1] - side**2 :]
        grid: Tensor = hidden.unflatten(1, (side, side))
        return grid

    def _probe(self) -> tuple[int, int, int]:
        """Rows, columns and width of the grid; stop training what it does not depend on."""
        parameter = next(self.backbone.parameters())
        pixels = torch.linspace(-1, 1, 3 * self.image_size**2).to(parameter)
        with torch.set_grad_enabled(not self.frozen):
            grid = self._map(pixels.view(1, 3, self.image_size, self.image_size))
            if not self.frozen:
                freeze_unused(self.backbone, grid.sum())
        return grid.shape[1], grid.shape[2], grid.shape[3]


def vision_part(model: Any) -> Any:
    """What encodes images: the vision tower of a model of several parts, or the model.

    Raises:
        InputError: if it takes no pixels.
    """
    body = getattr(model, "base_model", model)  # of a model with a head
    part = getattr(body, "vision_model", body)
    if "pixel_values" not in inspect.signature(part.forward).parameters:
        raise InputError(
            f"{type(model).__name__} takes no pixel_values; expected a model of images"
        )
    return part


def square_size(vision: Any) -> int | None:
    """Height and width of the images of an image model; None where it takes any, as convolutions.

    Of a model that takes patches of images of any size, the square that has all of its patches.
    """
    config = _config(vision)
    if _takes_patches(vision):
        return int(math.isqrt(config.num_patches) * config.patch_size)
    return config.image_size if isinstance(getattr(config, "patch_size", None), int) else None


def check_pixels(features: Tensor, size: int | None) -> None:
    """Raise unless these are pixels ``(B, 3, H, W)``, of height and width ``size`` if given."""
    if features.ndim != 4 or features.shape[1] != 3 or not features.is_floating_point():
        raise InputError(
            f"features is {features.dtype} of the shape {tuple(features.shape)}; expected "
            "floating-point pixels (batch, 3, height, width)"
        )
    check_not_empty(features=features)
    if size is not None and tuple(features.shape[2:]) != (size, size):
        raise InputError(
            f"features are {features.shape[2]} x {features.shape[3]} pixels; expected "
            f"{size} x {size}, the image size of the model"
        )


def pixel_inputs(vision: Any, features: Tensor) -> dict[str, Tensor]:
    """Pixels ``(B, 3, H, W)`` as the arguments that an image model wants."""
    features = features.to(next(vision.parameters()).dtype)
    if not _takes_patches(vision):
        return {"pixel_values": features}
    patch = _config(vision).patch_size
    rows, columns = features.shape[2] // patch, features.shape[3] // patch
    patches = features.unflatten(3, (columns, patch)).unflatten(2, (rows, patch))
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    return {
        "pixel_values": patches,
        "pixel_attention_mask": torch.ones(patches.shape[:2], dtype=torch.long).to(patches.device),
        "spatial_shapes": torch.tensor([[rows, columns]] * len(patches)).to(patches.device),
    }


def _takes_patches(vision: Any) -> bool:
    return "spatial_shapes" in inspect.signature(vision.forward).parameters


def _config(vision: Any) -> Any:
    return getattr(vision.config, "vision_config", vision.config)
