"""The similarity of TVRN: image and caption refined by each other, compared, reasoned over."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from itmkit.checks import check_choice, check_count
from itmkit.chunks import chunks
from itmkit.nn.attention.focal import Focal, check_focal, focal_attention
from itmkit.nn.attention.scan_attention import ScanAttention, attention_weights
from itmkit.nn.functional import map_tensors, xavier_linear
from itmkit.nn.pooling.attention_filtration import AttentionFiltration
from itmkit.nn.refinement.graph_reasoning import GraphReasoning
from itmkit.nn.refinement.text_refinement import CaptionPart, ImagePart, TextRefinement
from itmkit.nn.refinement.visual_refinement import RefinedImage, VisualRefinement
from itmkit.precision import at_least_float32, autocast_off
from itmkit.vectors import l2_normalize

Reasoning = Literal["sgr", "saf"]
_CACHED_PAIRS = 64  # so many chosen pairs stay in the caches of a CPU


class RefinedSimilarity(nn.Module):
    r"""Logits of all pairs of refined images and captions.

    .. math::
        c_l &= \mathrm{l2}\Big(\sum_n a_{ln}\, v'_n\Big), \qquad
        s_l = \mathrm{l2}\big(W (t'_l - c_l)^2\big), \qquad
        s_0 = \mathrm{l2}\big(W' (g_v - g_t)^2\big) \\
        \mathrm{logit} &= w \cdot \mathrm{reasoning}(s_0, s_1, \dots)

    with the refined regions :math:`v'` of :class:`VisualRefinement`, the refined words :math:`t'`
    of :class:`TextRefinement` for that image, SCAN attention *a* of words to regions, and graph
    reasoning (``sgr``) or attention filtration (``saf``). The sigmoid of a logit is TVRN's
    similarity; ranks are better taken from the logits, as sigmoids saturate and tie.

    Pairs are computed ``chunk_pairs`` at a time. With gradients, only the similarity vectors of a
    chunk are kept and the rest is computed again in the backward pass.

    Pang et al., TVRN, IEEE Transactions on Multimedia 26, 2024. Differs from the released code: see
    :class:`TextRefinement`; chunks in place of a loop over captions.

    Args:
        dim: width D of regions and words.
        similarity_dim: width S of the similarity vectors.
        reasoning: ``sgr`` or ``saf``.
        focal: see :func:`itmkit.nn.attention.focal.focal_attention`.
        num_regions: see :class:`VisualRefinement`.
        smooth: inverse temperature λ of all attention.
        dropout: of the poolings, in [0, 1).
        chunk_pairs: at most this many pairs at a time, at least 1 (one image with its captions, or
            one caption with its images, is never cut finer than a pair). Of chosen pairs, at most
            64 on a CPU.

    Shape:
        - image: ``(n, N, D)``, text ``(m, L, D)``: unit vectors
        - relations: ``(n, N, N)``
        - image_mask, text_mask: ``(n, N)`` and ``(m, L)`` bool, True on real tokens, or None
        - output: logits ``(n, m)``, at least fp32

    Raises:
        InputError: a wrong size or choice, or a wrong shape or dtype of an input.

    Example:
        >>> image, text = torch.randn(2, 3, 8), torch.randn(4, 5, 8)
        >>> relations = torch.eye(3).expand(2, 3, 3)
        >>> RefinedSimilarity(8, 4)(l2_normalize(image), l2_normalize(text), relations).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        dim: int = 1024,
        similarity_dim: int = 256,
        *,
        reasoning: Reasoning = "sgr",
        focal: Focal = "none",
        num_regions: int | None = None,
        smooth: float = 9.0,
        dropout: float = 0.0,
        chunk_pairs: int = 256,
    ) -> None:
        super().__init__()
        check_choice("reasoning", reasoning, Reasoning)
        check_focal(focal)
        check_count(similarity_dim=similarity_dim)
        check_count(chunk_pairs=chunk_pairs)
        self.dim = dim
        self.focal: Focal = focal
        self.smooth = smooth
        self.chunk_pairs = chunk_pairs
        attention = ScanAttention(dim, smooth=smooth)
        self.visual = VisualRefinement(
            dim, attention=attention, num_regions=num_regions, dropout=dropout
        )
        self.textual = TextRefinement(dim, attention=attention, dropout=dropout)
        self.local_similarity = xavier_linear(dim, similarity_dim)
        self.global_similarity = xavier_linear(dim, similarity_dim)
        self.reasoning = (
            GraphReasoning(similarity_dim)
            if reasoning == "sgr"
            else AttentionFiltration(similarity_dim)
        )
        self.logit = xavier_linear(similarity_dim, 1)

    def forward(
        self,
        image: Tensor,
        text: Tensor,
        relations: Tensor,
        image_mask: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        return self.score(self.visual(image, relations, image_mask), text, text_mask)

    def score(self, images: RefinedImage, text: Tensor, text_mask: Tensor | None = None) -> Tensor:
        """Logits ``(n, m)`` of images that are refined already and captions."""
        captions = self.textual.caption_part(text, text_mask)
        order, lengths = _by_length(text_mask)
        if order is not None:
            captions = _take(captions, order)
        sides = self._sides(images)
        if torch.compiler.is_exporting():  # chunks would fix the numbers of items
            return self._logits(self._similarities(captions, sides), _node_mask(captions.mask))
        n, m = len(images.vector), len(text)
        height = max(1, min(n, max(math.isqrt(self.chunk_pairs), self.chunk_pairs // max(m, 1))))
        width = max(1, self.chunk_pairs // height)
        groups = [_take(captions, slice(left, left + width)) for left in range(0, max(m, 1), width)]
        if lengths is not None:
            groups = [
                group.trimmed(max(lengths[k * width :][:width], default=1))
                for k, group in enumerate(groups)
            ]
        # The batch normalisation of SAF sees all pairs in training: there, chunks end before it.
        whole = self.training and isinstance(self.reasoning, AttentionFiltration)
        nodes = 1 + 2 * text.shape[1]

        def chunk(group: CaptionPart, rows: slice) -> Tensor:
            vectors = self._similarities(group, _take(sides, rows))
            if whole:
                return F.pad(vectors, (0, 0, 0, nodes - vectors.shape[2]))
            return self._logits(vectors, _node_mask(group.mask))

        bands = []
        for top in range(0, max(n, 1), height):
            rows = slice(top, top + height)
            if torch.is_grad_enabled() and n * m > self.chunk_pairs:
                band = [checkpoint(chunk, group, rows, use_reentrant=False) for group in groups]
            else:
                band = [chunk(group, rows) for group in groups]
            bands.append(torch.cat(band, dim=1))
        scores = torch.cat(bands)
        if whole:
            masks = [_node_mask(group.mask, nodes) for group in groups]
            real = [mask for mask in masks if mask is not None]
            scores = self._logits(scores, torch.cat(real) if real else None)
        return scores if order is None else scores[:, order.argsort()]

    def score_pairs(
        self, images: RefinedImage, text: Tensor, text_mask: Tensor | None, pairs: Tensor
    ) -> Tensor:
        """Logits of chosen pairs, those of captions of a length together.

        Args:
            images: ``n`` refined images.
            text: ``(m, L, D)`` words.
            text_mask: ``(m, L)`` bool, or None.
            pairs: ``(p, 2)`` int64, row of the image and row of the caption.

        Returns:
            ``(p,)``, at least fp32.
        """
        sides = self._sides(images)
        rows, columns = pairs.unbind(1)
        order, lengths = _by_length(None if text_mask is None else text_mask[columns])
        if order is not None:
            rows, columns = rows[order], columns[order]
        on_cpu = text.device.type == "cpu"
        size = min(self.chunk_pairs, _CACHED_PAIRS) if on_cpu else self.chunk_pairs
        scores = [at_least_float32(self.logit.weight).new_zeros(0)]
        for chunk in chunks(len(pairs), size):
            used, place = columns[chunk].unique(return_inverse=True)
            longest = text.shape[1] if lengths is None else lengths[chunk][-1]
            mask = None if text_mask is None else text_mask[used, :longest]
            captions = self.textual.caption_part(text[used, :longest], mask)
            own = _take(captions, place.unsqueeze(1))
            vectors = self._similarities(own, _take(sides, rows[chunk]))
            scores.append(self._logits(vectors, _node_mask(own.mask)).squeeze(1))
        found = torch.cat(scores)
        return found if order is None else found[order.argsort()]

    def contexts(self, tokens: Tensor, mask: Tensor | None, images: RefinedImage) -> Tensor:
        """What refined words find in the refined regions of their image.

        Args:
            tokens: ``(n, m, K, D)`` words of each pair.
            mask: ``(m, K)`` bool, or None.
            images: ``n`` refined images.

        Returns:
            ``(n, m, K, D)`` unit vectors.
        """
        return self._contexts(tokens, mask, images, self._relevance(images))

    def attention(
        self, images: RefinedImage, text: Tensor, text_mask: Tensor | None = None
    ) -> Tensor:
        """How much the words of every caption look at the regions of every image.

        A word and a region count twice in the comparison, as they are and refined: words have the
        mean of both, regions the sum.

        Args:
            images: ``n`` refined images of N regions.
            text: ``(m, L, D)`` words.
            text_mask: ``(m, L)`` bool, or None.

        Returns:
            ``(n, m, L, N)``, which sum to one over the regions; zero on padding.
        """
        captions = self.textual.caption_part(text, text_mask)
        part = self.textual.image_part(images.context, images.context_mask)
        words = self.textual.pairs(captions, part)
        weights = self._weights(words.tokens, words.mask, images, self._relevance(images))
        if words.mask is not None:
            weights = weights * words.mask[:, :, None]
        weights = weights.unflatten(2, (2, -1)).mean(2)
        shares: Tensor = weights.unflatten(3, (2, -1)).sum(3)
        return shares

    def _sides(self, images: RefinedImage) -> _Images:
        part = self.textual.image_part(images.context, images.context_mask)
        return _Images(part, images, self._relevance(images))

    def _contexts(
        self, tokens: Tensor, mask: Tensor | None, images: RefinedImage, relevance: Tensor | None
    ) -> Tensor:
        weights = self._weights(tokens, mask, images, relevance)
        found = l2_normalize(weights.flatten(1, 2) @ images.tokens)
        contexts: Tensor = found.unflatten(1, weights.shape[1:3])
        return contexts

    def _weights(
        self, tokens: Tensor, mask: Tensor | None, images: RefinedImage, relevance: Tensor | None
    ) -> Tensor:
        """Attention ``(n, m, K, 2N)`` of refined words ``(n, m, K, D)`` to refined regions."""
        m, k = tokens.shape[1:3]
        flat = tokens.flatten(1, 2)  # (n, m·K, D): one product an image
        similarity = (flat @ images.tokens.mT).unflatten(1, (m, k))
        context_mask = None if images.mask is None else images.mask.unsqueeze(1)
        weights = attention_weights(similarity, mask, context_mask, smooth=self.smooth)
        return focal_attention(
            weights,
            self.focal,
            context_mask=context_mask,
            relevance=None if relevance is None else relevance.unsqueeze(1),
        )

    def _relevance(self, images: RefinedImage) -> Tensor | None:
        """For ``focal="global"``: softmax similarity ``(n, 2N)`` of regions to their image."""
        if self.focal != "global":
            return None
        logits = self.smooth * (images.tokens @ images.vector.unsqueeze(-1)).squeeze(-1)
        if images.mask is None:
            return logits.softmax(-1)
        lowest = torch.finfo(logits.dtype).min
        return logits.masked_fill(~images.mask, lowest).softmax(-1) * images.mask

    def _similarities(self, captions: CaptionPart, sides: _Images) -> Tensor:
        """Similarity vectors ``(n, m, 1 + 2L, S)`` of pairs, the global one first."""
        texts = self.textual.pairs(captions, sides.part)
        context = self._contexts(texts.tokens, texts.mask, sides.refined, sides.relevance)
        local = self.local_similarity((texts.tokens - context).square())
        whole = self.global_similarity((sides.refined.vector.unsqueeze(1) - texts.vector).square())
        vectors = torch.cat([whole.unsqueeze(2), local], dim=2)
        return l2_normalize(vectors)

    def _logits(self, vectors: Tensor, mask: Tensor | None) -> Tensor:
        n, m = vectors.shape[:2]
        if mask is not None:
            mask = mask.expand(n, -1, -1).flatten(0, 1)
        read = self.reasoning(vectors.flatten(0, 1), mask).unflatten(0, (n, m))
        with autocast_off(read):
            weight, bias = at_least_float32(self.logit.weight), at_least_float32(self.logit.bias)
            return F.linear(at_least_float32(read), weight, bias).squeeze(-1)


class _Images(NamedTuple):
    """What the pairs of ``n`` images need of them."""

    part: ImagePart
    refined: RefinedImage
    relevance: Tensor | None


_Rows = TypeVar("_Rows", CaptionPart, _Images)


def _take(parts: _Rows, rows: slice | Tensor) -> _Rows:
    """Rows of every tensor."""
    taken: _Rows = map_tensors(lambda tensor: tensor[rows], parts)
    return taken


def _by_length(mask: Tensor | None) -> tuple[Tensor | None, list[int] | None]:
    """Captions from short to long, so that a chunk has little padding, and their lengths."""
    if mask is None or torch.compiler.is_compiling():  # reading values would break the graph
        return None, None
    lengths = (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(1)
    lengths, order = lengths.sort(stable=True)
    return order, lengths.clamp_min(1).tolist()


def _node_mask(mask: Tensor | None, nodes: int = 0) -> Tensor | None:
    """Which of at least ``nodes`` nodes ``(…, nodes)`` are real, for a mask ``(…, L)`` of words."""
    if mask is None:
        return None
    real = torch.cat([torch.ones_like(mask[..., :1]), mask, mask], dim=-1)
    return F.pad(real, (0, max(0, nodes - real.shape[-1])))
