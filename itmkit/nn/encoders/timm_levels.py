"""Pixels to the tokens of several stages of a timm backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from itmkit.checks import check_count, check_optional_count
from itmkit.nn.contract import Tokens
from itmkit.nn.encoders.region_projection import RegionProjection
from itmkit.nn.encoders.timm_backbone import TimmBackbone
from itmkit.nn.layers.linear import Linear
from itmkit.nn.pooling.feature_discriminability import FeatureDiscriminability


class TimmLevels(TimmBackbone):
    """Several stages of any timm backbone as tokens of one width, row by row.

    Each level is the output of a stage, then ``level_discriminability``, positions, a LayerNorm of
    the width of the stage, and a Linear (or a :class:`RegionProjection`) to ``dim``; class and
    register tokens are left out.

    The image side of DAIM: stages 2, 3 and 4 of Swin-B. At 224 pixels these are 784, 196 and 49
    tokens.

    Args:
        model_name: a name that ``timm.create_model`` knows; or a module, such as a timm model,
            which keeps all of its parts and is trained where it has gradients.
        dim: width D of the tokens.
        out_indices: the stages (of a ViT: the blocks), ascending, counted from 0 or from the end.
        pretrained: fetch timm's pretrained weights.
        checkpoint: local file with weights of the whole model, ``.safetensors`` or ``torch.save``.
        checkpoint_by_order: match the tensors of ``checkpoint`` by order and shape, not by name.
        image_size: height and width of the images, in pixels.
        model_args: further arguments of ``timm.create_model``.
        frozen: the backbone is never trained: no gradient, always in eval mode.
        block_discriminability: put between attention and MLP of every block, see
            :func:`itmkit.nn.pooling.block_discriminability.discriminate_blocks`; None for none.
        level_discriminability: applied to the output of each stage; None for none.
        positions: add a learned embedding of the row and one of the column to the cells.
        hidden_dim: project by a :class:`RegionProjection` with an MLP of this width, which matters
            when training from scratch; None for a Linear.

    Shape:
        - features: pixels ``(B, 3, H, W)``, floating point, normalised as the backbone wants it
        - output: for each level tokens ``(B, rows * columns, D)`` and None (nothing is padded)

    Attributes:
        dim: width D of the tokens.
        levels: number of levels.
        grids: rows and columns of each level for images of ``image_size``.

    Raises:
        InputError: features that are not pixels, stages or weights that do not fit, contradicting
            arguments, block_discriminability for a backbone without transformer blocks.
        FileNotFoundError: there is no file ``checkpoint``.

    Example:
        >>> import torch
        >>> encoder = TimmLevels("test_resnet", 8, out_indices=(2, 3), image_size=64).eval()
        >>> [tokens.shape for tokens, _ in encoder(torch.zeros(2, 3, 64, 64))]
        [torch.Size([2, 64, 8]), torch.Size([2, 16, 8])]
    """

    def __init__(
        self,
        model_name: str | nn.Module,
        dim: int = 768,
        *,
        out_indices: Sequence[int] = (1, 2, 3),
        pretrained: bool = False,
        checkpoint: str | Path | None = None,
        checkpoint_by_order: bool = False,
        image_size: int = 224,
        model_args: dict[str, Any] | None = None,
        frozen: bool = False,
        block_discriminability: FeatureDiscriminability | None = None,
        level_discriminability: FeatureDiscriminability | None = None,
        positions: bool = False,
        hidden_dim: int | None = None,
    ) -> None:
        check_count(dim=dim)
        check_optional_count(hidden_dim=hidden_dim)
        super().__init__(
            model_name,
            stages=out_indices,
            stages_name="out_indices",
            pretrained=pretrained,
            checkpoint=checkpoint,
            checkpoint_by_order=checkpoint_by_order,
            image_size=image_size,
            model_args=model_args,
            frozen=frozen,
            block_discriminability=block_discriminability,
        )
        self.dim = dim
        self.levels = len(self.grids)
        self.level_discriminability = level_discriminability
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in self.channels)
        self.projections = nn.ModuleList(
            Linear(width, dim)
            if hidden_dim is None
            else RegionProjection(width, dim, hidden_dim=hidden_dim)
            for width in self.channels
        )
        self.row_embeddings = nn.ParameterList()
        self.column_embeddings = nn.ParameterList()
        if positions:
            for level in range(self.levels):
                row, column = self.position_embeddings(level)
                self.row_embeddings.append(row)
                self.column_embeddings.append(column)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> list[Tokens]:
        out = []
        for level, grid in enumerate(self.maps(features, mask)):
            if self.level_discriminability is not None:
                tokens = self.level_discriminability(grid.flatten(1, 2))
                grid = tokens.reshape(grid.shape)
            if len(self.row_embeddings) > 0:
                row, column = self.row_embeddings[level], self.column_embeddings[level]
                grid = self.add_positions(level, grid, row, column)
            tokens = self.norms[level](grid.flatten(1, 2))
            projected = self.projections[level](tokens)
            out.append(Tokens(projected if isinstance(projected, Tensor) else projected[0]))
        return out
