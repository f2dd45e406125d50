"""The multi-modal fusion encoder of MATE and its pair score."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, check_count, check_dropout, check_positive
from itmkit.nn.fusion.sides import check_sides, pair_rows
from itmkit.nn.fusion.transformer_layer import TransformerLayer
from itmkit.vectors import l2_normalize


class FusionEncoder(nn.Module):
    """A transformer encoder over both sides of a pair, read out at two global positions.

    It takes the sequence [global image, image tokens, global text, word tokens], each with an
    embedding of its type. It adds no position embedding: positions are the encoders' work.

    From "Momentum-Augmented Transformer Encoder" (MATE). Differs from the released code: that one
    fuses a single token of width 2D, where attention does nothing, and fuses every image with its
    own caption even in evaluation. Here the pair (i, j) is computed from image i and caption j.

    Args:
        dim: width D of the tokens, a multiple of ``num_heads``.
        num_layers: pre-norm transformer layers.
        num_heads: attention heads.
        dropout: dropout in [0, 1) on the input and on both branches of a layer.
        attention_dropout: dropout in [0, 1) on the attention weights; slow on a CPU.
        mlp_ratio: width of the MLP of a layer, in multiples of ``dim``.

    Shape:
        - image_vector, text_vector: ``(P, D)``
        - image_tokens: ``(P, N, D)``, image_mask: ``(P, N)`` bool, True on real tokens, or None
        - text_tokens: ``(P, L, D)``, text_mask: ``(P, L)`` likewise
        - pairs: ``(P, 2)`` int64, an image row and a caption row each, where the rows of the two
          sides are not those of the pairs; or None
        - output: ``(P, D)`` and ``(P, D)``, the read-outs of image and text

    Raises:
        InputError: a wrong size or probability, or inputs whose shapes do not fit each other.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> fusion = FusionEncoder(16, num_layers=2, num_heads=2).eval()
        >>> pair = torch.randn(3, 16), torch.randn(3, 5, 16), None
        >>> pair += torch.randn(3, 16), torch.randn(3, 7, 16), None
        >>> fusion(*pair)[0].shape, fusion.pair_score(*pair).shape
        (torch.Size([3, 16]), torch.Size([3]))
    """

    def __init__(
        self,
        dim: int,
        num_layers: int = 6,
        num_heads: int = 16,
        *,
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        check_count(num_layers=num_layers, num_heads=num_heads, dim=dim)
        if dim % num_heads:
            raise InputError(f"dim is {dim}; expected a multiple of num_heads, {num_heads}")
        check_dropout(dropout=dropout, attention_dropout=attention_dropout)
        check_positive(mlp_ratio=mlp_ratio)
        self.dim = dim
        self.norm_in = nn.LayerNorm(dim)
        self.type_embedding = nn.Parameter(0.02 * torch.randn(4, dim))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                dim,
                num_heads,
                dropout,
                round(mlp_ratio * dim),
                attention_dropout=attention_dropout,
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        image_vector: Tensor,
        image_tokens: Tensor,
        image_mask: Tensor | None,
        text_vector: Tensor,
        text_tokens: Tensor,
        text_mask: Tensor | None,
        *,
        pairs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        images = image_vector, image_tokens, image_mask
        texts = text_vector, text_tokens, text_mask
        check_sides(self.dim, images, texts, pairs)
        image_rows, text_rows = pair_rows(pairs)
        image_vector, image_tokens, image_mask = _rows(image_rows, *images)
        text_vector, text_tokens, text_mask = _rows(text_rows, *texts)
        # Attention does not see the order, so both global positions come first: the last layer
        # then computes these two alone.
        parts = [image_vector.unsqueeze(1), text_vector.unsqueeze(1), image_tokens, text_tokens]
        masks = [None, None, image_mask, text_mask]
        kinds = self.type_embedding.unbind()
        x = torch.cat(
            [
                self.norm_in(part if mask is None else part.masked_fill(~mask.unsqueeze(-1), 0))
                + kind
                for part, mask, kind in zip(parts, masks, kinds, strict=True)
            ],
            dim=1,
        )
        real = None
        if image_mask is not None or text_mask is not None:
            real = torch.cat(
                [
                    part.new_ones(part.shape[:2], dtype=torch.bool) if mask is None else mask
                    for part, mask in zip(parts, masks, strict=True)
                ],
                dim=1,
            )
        x = self.dropout(x)
        for layer in self.layers[:-1]:
            x = layer(x, real)
        image_out, text_out = self.norm(self.layers[-1](x, real, 2)).unbind(dim=1)
        return image_out, text_out

    def pair_score(
        self,
        image_vector: Tensor,
        image_tokens: Tensor,
        image_mask: Tensor | None,
        text_vector: Tensor,
        text_tokens: Tensor,
        text_mask: Tensor | None,
        *,
        pairs: Tensor | None = None,
    ) -> Tensor:
        """Cosine ``(P,)`` of the two read-outs, at least fp32; arguments as those of forward."""
        images = image_vector, image_tokens, image_mask
        image_out, text_out = self(*images, text_vector, text_tokens, text_mask, pairs=pairs)
        dtype = torch.promote_types(image_out.dtype, torch.float32)
        return (l2_normalize(image_out.to(dtype)) * l2_normalize(text_out.to(dtype))).sum(-1)

    def attention(
        self,
        image_vector: Tensor,
        image_tokens: Tensor,
        image_mask: Tensor | None,
        text_vector: Tensor,
        text_tokens: Tensor,
        text_mask: Tensor | None,
    ) -> Tensor:
        """How much words look at image tokens; arguments as those of forward.

        Returns:
            ``(P, L, N)``, the mean over layers and heads, fp32; zero on padding. The rest of a
            word's attention, up to one, is on words and global positions.
        """
        seen: list[tuple[TransformerLayer, Tensor, Tensor | None]] = []
        handles = [
            layer.register_forward_pre_hook(lambda module, args: seen.append((module, *args[:2])))
            for layer in self.layers
        ]
        try:
            self(image_vector, image_tokens, image_mask, text_vector, text_tokens, text_mask)
        finally:
            for handle in handles:
                handle.remove()
        words = 2 + image_tokens.shape[1]
        weights = torch.stack([layer.attention(x, real) for layer, x, real in seen]).mean(0)
        weights = weights[:, words:, 2:words]
        return weights if text_mask is None else weights * text_mask.unsqueeze(-1)


def _rows(
    rows: Tensor | slice, vector: Tensor, tokens: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return vector[rows], tokens[rows], None if mask is None else mask[rows]
