"""A fusion encoder in which every word of a caption reads the image by cross-attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from itmkit.checks import InputError, check_count, check_dropout, check_positive
from itmkit.nn.functional import fill_padding, xavier_linear
from itmkit.nn.fusion.sides import Side, check_sides, pair_rows
from itmkit.nn.fusion.transformer_layer import TransformerLayer, split_heads
from itmkit.precision import at_least_float32, autocast_off
from itmkit.vectors import l2_normalize


class CrossAttentionFusion(nn.Module):
    r"""Words of a caption query the image, and what they read is compared with what they expect.

    The text vector and the words of a caption attend to each other in ``num_layers`` pre-norm
    transformer layers. Each of them then attends once, with H heads, to the image vector and the
    image tokens. The cosine :math:`c_{wh}` of what word w reads with head h, and of what it expects
    to read, says whether the word is true; the words are weighed by :math:`a_w`, which the caption
    decides:

    .. math:: s = \sum_w a_w \big(\tfrac{\gamma}{H} \sum_h c_{wh} + MLP(c_{w1}, …, c_{wH})\big)

    Only the attention and the cosines are computed for every pair; all else is once an image or
    once a caption, so that a pair costs a small part of what it costs in :class:`FusionEncoder`.
    The score cannot read the image alone: an offset of an image would be the same for all of its
    captions, and wrong for captions that look for images.

    Ours; MATE's paper fuses both sides in one transformer, which is :class:`FusionEncoder`.

    Args:
        dim: width D of the tokens, a multiple of ``num_heads``.
        num_layers: layers of self-attention over the caption, at least 0.
        num_heads: attention heads H, of the layers and of the attention to the image.
        dropout: in [0, 1), on the inputs and on both branches of a layer.
        mlp_ratio: width of the MLP of a layer, in multiples of ``dim``.

    Shape:
        As of :class:`FusionEncoder`. The output is what the words read of the image and what they
        expected, each summed with their weights, for a :class:`MatchingHead`; :meth:`pair_score`
        compares word by word.

    Raises:
        InputError: a wrong size or probability, or inputs whose shapes do not fit each other.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> fusion = CrossAttentionFusion(16, num_heads=2).eval()
        >>> images = torch.randn(3, 16), torch.randn(3, 5, 16), None
        >>> texts = torch.randn(4, 16), torch.randn(4, 7, 16), None
        >>> fusion.pair_score(*images, *texts, pairs=torch.tensor([[0, 0], [0, 3], [2, 1]])).shape
        torch.Size([3])
    """

    def __init__(
        self,
        dim: int,
        num_layers: int = 1,
        num_heads: int = 4,
        *,
        dropout: float = 0.1,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        check_count(0, num_layers=num_layers)
        check_count(num_heads=num_heads, dim=dim)
        if dim % num_heads:
            raise InputError(f"dim is {dim}; expected a multiple of num_heads, {num_heads}")
        check_dropout(dropout=dropout)
        check_positive(mlp_ratio=mlp_ratio)
        self.dim = dim
        self.num_heads = num_heads
        self.norm_image = nn.LayerNorm(dim)
        self.norm_text = nn.LayerNorm(dim)
        self.type_embedding = nn.Parameter(0.02 * torch.randn(4, dim))
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(dim, num_heads, dropout, round(mlp_ratio * dim))
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.query = xavier_linear(dim, dim)
        self.expected = xavier_linear(dim, dim)
        self.key_value = xavier_linear(dim, 2 * dim)
        self.word_weight = xavier_linear(dim, 1)
        self.hidden = xavier_linear(num_heads, 4 * num_heads)
        self.out = xavier_linear(4 * num_heads, 1)
        self.log_scale = nn.Parameter(torch.tensor(math.log(8.0)))

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
        read, expected, weights = self._words(images, texts, pairs)
        image_out, text_out = (
            rearrange((side * weights[:, None, :, None]).sum(2), "p h d -> p (h d)")
            for side in (read, expected)
        )
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
        """Logits ``(P,)``, at least fp32; arguments as those of forward."""
        images = image_vector, image_tokens, image_mask
        texts = text_vector, text_tokens, text_mask
        read, expected, weights = self._words(images, texts, pairs)
        with autocast_off(read):
            cosines = (at_least_float32(read) * at_least_float32(expected)).sum(-1).mT
        judged = self.out(F.gelu(self.hidden(cosines))).squeeze(-1)
        words = self.log_scale.exp() * cosines.mean(-1) + judged
        return at_least_float32((words * weights).sum(-1))

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
            ``(P, L, N)``, the mean over heads, fp32; zero on padding. The rest of a word's
            attention, up to one, is on the image vector.
        """
        images = image_vector, image_tokens, image_mask
        texts = text_vector, text_tokens, text_mask
        check_sides(self.dim, images, texts, None)
        (key, _), image_real = self._keys(images)
        (query, _), _ = self._queries(texts)
        logits = at_least_float32(query @ key.mT) / math.sqrt(query.shape[-1])
        if image_real is not None:
            logits = logits.masked_fill(~image_real[:, None, None, :], -torch.inf)
        weights = logits.softmax(-1).mean(1)[:, 1:, 1:]
        return weights if text_mask is None else weights * text_mask.unsqueeze(-1)

    def _words(
        self, images: Side, texts: Side, pairs: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the words of every pair read and expect ``(P, H, 1 + L, D / H)``, as unit vectors.

        And how much each word counts ``(P, 1 + L)``.
        """
        check_sides(self.dim, images, texts, pairs)
        image_rows, text_rows = pair_rows(pairs)
        (query, expected), weights = self._queries(texts)
        (key, value), image_real = self._keys(images)
        read = F.scaled_dot_product_attention(
            query[text_rows],
            key[image_rows],
            value[image_rows],
            attn_mask=None if image_real is None else image_real[image_rows][:, None, None, :],
        )
        return l2_normalize(read), l2_normalize(expected)[text_rows], weights.softmax(1)[text_rows]

    def _keys(self, images: Side) -> tuple[list[Tensor], Tensor | None]:
        """Keys and values of every image, and which of them are real."""
        image, real = _side(*images, self.norm_image, self.type_embedding[:2])
        parts = self.key_value(self.dropout(image)).chunk(2, dim=-1)
        return [split_heads(part, self.num_heads) for part in parts], real

    def _queries(self, texts: Side) -> tuple[list[Tensor], Tensor]:
        """What the words of every caption ask and expect, and the logits of their weights."""
        x, real = _side(*texts, self.norm_text, self.type_embedding[2:])
        x = self.dropout(x)
        for layer in self.layers:
            x = layer(x, real)
        x = self.norm(x)
        weights = self.word_weight(x).squeeze(-1)
        if real is not None:
            weights = weights.masked_fill(~real, -torch.inf)
        return [
            split_heads(linear(x), self.num_heads) for linear in (self.query, self.expected)
        ], weights


def _side(
    vector: Tensor, tokens: Tensor, mask: Tensor | None, norm: nn.Module, kinds: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The vector and the tokens of one side in a sequence, and which of it is real."""
    tokens = fill_padding(tokens, mask)
    x = torch.cat([norm(vector[:, None]) + kinds[0], norm(tokens) + kinds[1]], dim=1)
    return x, None if mask is None else F.pad(mask, (1, 0), value=True)
