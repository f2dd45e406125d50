"""Pixels to a grid of tokens, through a timm backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from itmkit.checks import InputError, check_optional_count
from itmkit.nn.contract import Tokens, encoder_width
from itmkit.nn.encoders.timm_backbone import TimmBackbone
from itmkit.nn.layers.linear import Linear


class TimmGrid(TimmBackbone):
    """The grid of any timm backbone as tokens, row by row.

    Convolutional, Swin-like and ViT backbones all work; class and register tokens are left out.
    The width becomes ``dim`` by a Linear and a LayerNorm, or by an injected ``projection``.

    Args:
        model_name: a name that ``timm.create_model`` knows; or a module, such as a timm model,
            which keeps all of its parts and is trained where it has gradients.
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
        mirror_mean: each grid is the mean of that of the image and that of its mirror image, turned
            back, which halves the noise of a backbone at twice its time.
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
        InputError: features that are not pixels, weights that do not fit, contradicting arguments.
        FileNotFoundError: there is no file ``checkpoint``.

    Example:
        >>> import torch
        >>> encoder = TimmGrid("test_resnet", 8, image_size=64).eval()
        >>> tokens, mask = encoder(torch.zeros(2, 3, 64, 64))
        >>> encoder.grid, tokens.shape
        ((2, 2), torch.Size([2, 4, 8]))
    """

    def __init__(
        self,
        model_name: str | nn.Module,
        dim: int | None = None,
        *,
        pretrained: bool = False,
        checkpoint: str | Path | None = None,
        checkpoint_by_order: bool = False,
        image_size: int = 224,
        out_index: int = -1,
        model_args: dict[str, Any] | None = None,
        positions: bool = False,
        mirror_mean: bool = False,
        frozen: bool = False,
        projection: nn.Module | None = None,
    ) -> None:
        check_optional_count(dim=dim)
        if projection is not None and dim not in (None, encoder_width("projection", projection)):
            raise InputError(f"dim is {dim}; expected None, or the dim of projection")
        super().__init__(
            model_name,
            stages=None if out_index == -1 else [out_index],
            stages_name="out_index",
            pretrained=pretrained,
            checkpoint=checkpoint,
            checkpoint_by_order=checkpoint_by_order,
            image_size=image_size,
            model_args=model_args,
            frozen=frozen,
        )
        self.mirror_mean = mirror_mean
        self.grid: tuple[int, int] = self.grids[0]
        self.projection = projection
        if projection is not None:
            self.dim = encoder_width("projection", projection)
        elif dim is not None:
            self.projection = nn.Sequential(Linear(self.channels[0], dim), nn.LayerNorm(dim))
            self.dim = dim
        else:
            self.dim = self.channels[0]
        self.row_embedding: nn.Parameter | None = None
        self.column_embedding: nn.Parameter | None = None
        if positions:
            self.row_embedding, self.column_embedding = self.position_embeddings(0)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tokens:
        (grid,) = self.maps(features, mask)
        if self.mirror_mean:
            (mirrored,) = self.maps(features.flip(-1), None)
            grid = (grid + mirrored.flip(2)) / 2
        if self.row_embedding is not None and self.column_embedding is not None:
            grid = self.add_positions(0, grid, self.row_embedding, self.column_embedding)
        tokens = grid.flatten(1, 2)
        if isinstance(self.projection, nn.Sequential):
            tokens = self.projection(tokens)
        elif self.projection is not None:
            tokens, _ = self.projection(tokens, None)
        return Tokens(tokens)
