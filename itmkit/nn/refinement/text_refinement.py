"""TVRN's text side: words refined by the image that they are compared with."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.nn.attention.scan_attention import ScanAttention, attention_weights
from itmkit.nn.encoders.two_part_gru import TwoPartGRU
from itmkit.nn.functional import check_tokens, fill_padding
from itmkit.nn.pooling.guided_pooling import GuidedPooling
from itmkit.precision import at_least_float32, autocast_off
from itmkit.vectors import inverse_norm


class RefinedText(NamedTuple):
    """Captions after :class:`TextRefinement`, once for each image.

    Args:
        tokens: ``(n, m, 2L, D)`` refined words of each pair; zero on padding.
        mask: ``(m, 2L)`` bool, or None.
        vector: ``(n, m, D)`` of the whole caption.
    """

    tokens: Tensor
    mask: Tensor | None
    vector: Tensor


class CaptionPart(NamedTuple):
    """What :class:`TextRefinement` needs of ``m`` captions, whatever the image.

    With a dimension ``n`` in front, each of ``n`` images has ``m`` captions of its own.
    """

    words: Tensor  # (m, L, D)
    mask: Tensor | None  # (m, L)
    query: Tensor  # (m, L, D) of the self-attended words
    refined: Tensor  # (m, L, D) the first L refined words
    gate: Tensor  # (m, L, D) of those in the pooling
    state: Tensor  # (m, D) of the GRU after them

    def trimmed(self, length: int) -> CaptionPart:
        """The same with the first ``length`` words alone, where no caption has more."""
        return CaptionPart(
            self.words[:, :length],
            None if self.mask is None else self.mask[:, :length],
            self.query[:, :length],
            self.refined[:, :length],
            self.gate[:, :length],
            self.state,
        )


class ImagePart(NamedTuple):
    """What :class:`TextRefinement` needs of ``n`` images, whatever the caption."""

    mask: Tensor | None  # (n, N)
    key: Tensor  # (n, N, D)
    gates: Tensor  # (n, N, 3D) what the context puts into the gates of the GRU
    gram: Tensor  # (n, N, N) of the context, at least fp32


class TextRefinement(nn.Module):
    r"""Refine the words of a caption by the image that it is compared with.

    .. math::
        \mathrm{self} &= \mathrm{attend}(t, t), \qquad
        \mathrm{vis} = \mathrm{attend}(\mathrm{self}, \mathrm{con}) \\
        t' &= \mathrm{l2}\big(\mathrm{GRU}([t; \mathrm{vis}]) + [t; t]\big), \qquad
        g = \mathrm{GuidedPooling}(t')

    with the context *con* of :class:`VisualRefinement`. Every pair is computed from its own image
    and caption. What depends on a caption alone (its self-attention, the first L steps of the GRU
    and their share in the pooling) is computed once a caption, what depends on an image alone once
    an image: :meth:`caption_part`, :meth:`image_part` and :meth:`pairs`. What a context puts into
    the gates of the GRU is linear, hence attention runs over that instead of over the context.

    From TVRN. Differs from the released code: that one refines all captions by the first image of
    the batch, so that a score depends on its batch.

    Args:
        dim: width D of words and context.
        attention: the attention, to share it; None for one of its own.
        dropout: dropout of the pooling, in [0, 1).

    Shape:
        - text: ``(m, L, D)``, unit vectors in TVRN
        - context: ``(n, N, D)``
        - text_mask, context_mask: ``(m, L)`` and ``(n, N)`` bool, True on real tokens, or None
        - output: the :class:`RefinedText` of all ``n × m`` pairs

    Raises:
        InputError: a wrong size, or a wrong shape or dtype of an input.

    Example:
        >>> refined = TextRefinement(8)(torch.randn(4, 5, 8), torch.randn(2, 3, 8))
        >>> refined.tokens.shape, refined.vector.shape
        (torch.Size([2, 4, 10, 8]), torch.Size([2, 4, 8]))
    """

    def __init__(
        self, dim: int, *, attention: ScanAttention | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.dim = dim
        self.attention = attention or ScanAttention(dim)
        if self.attention.dim != dim:
            raise InputError(f"attention.dim is {self.attention.dim}; expected {dim}, that of dim")
        self.gru = TwoPartGRU(dim)
        self.pool = GuidedPooling(dim, dropout=dropout)

    def forward(
        self,
        text: Tensor,
        context: Tensor,
        text_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> RefinedText:
        return self.pairs(
            self.caption_part(text, text_mask), self.image_part(context, context_mask)
        )

    def caption_part(self, text: Tensor, mask: Tensor | None = None) -> CaptionPart:
        """What depends on ``m`` captions alone."""
        check_tokens("text", text, self.dim, mask, "text_mask")
        text = fill_padding(text, mask)
        query = self.attention.query(self.attention(text, text, mask, mask))
        refined, state = self.gru.first(text, mask)
        return CaptionPart(text, mask, query, refined, self.pool.gate(refined), state)

    def image_part(self, context: Tensor, mask: Tensor | None = None) -> ImagePart:
        """What depends on ``n`` images alone."""
        check_tokens("context", context, self.dim, mask, "context_mask")
        context = fill_padding(context, mask)
        gates = self.gru.gates(context)
        with autocast_off(context):
            wide = at_least_float32(context)
            gram = wide @ wide.mT
        return ImagePart(mask, self.attention.key(context), gates, gram)

    def pairs(self, captions: CaptionPart, images: ImagePart) -> RefinedText:
        """Every caption refined by every image, or by its own."""
        weights = self.weights(captions, images)  # (n, m, L, N)
        flat = weights.flatten(1, 2)  # (n, m·L, N): one product an image
        with autocast_off(flat):  # |Σ a con|², from the Gram matrix
            square = ((flat.to(images.gram.dtype) @ images.gram) * flat).sum(-1)
        scale = inverse_norm(square)
        gates = (flat * scale.unsqueeze(-1).to(flat.dtype)) @ images.gates
        n = weights.shape[0]
        mask = None if captions.mask is None else captions.mask.expand(n, -1, -1)
        words = captions.words.expand(n, -1, -1, -1)
        tokens = self.gru.second(
            gates.unflatten(1, weights.shape[1:3]), captions.state.expand(n, -1, -1), words, mask
        )
        gate = torch.cat([captions.gate.expand_as(words), self.pool.gate(tokens)], dim=2)
        tokens = torch.cat([captions.refined.expand_as(words), tokens], dim=2)
        both = None if captions.mask is None else torch.cat([captions.mask] * 2, dim=-1)
        return RefinedText(tokens, both, self.pool.pool(tokens, gate, both))

    def weights(self, captions: CaptionPart, images: ImagePart) -> Tensor:
        """Attention ``(n, m, L, N)`` of the words of every caption to every image, or its own."""
        captions_of = "mld" if captions.query.ndim == 3 else "nmld"
        similarity = torch.einsum(f"{captions_of},nrd->nmlr", captions.query, images.key)
        return attention_weights(
            similarity,
            captions.mask,
            None if images.mask is None else images.mask.unsqueeze(1),
            smooth=self.attention.smooth,
        )
