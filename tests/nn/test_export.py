"""Every module can be exported by torch.export, whatever sizes it is given afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from clip_models import clip_config
from masked_tokens import lengths_mask
from module_checks import biased
from torch import Tensor, nn
from torch.export import Dim
from torch.utils._pytree import tree_leaves

from itmkit import nn as parts
from itmkit.nn import FeatureDiscriminability, l2_normalize
from itmkit.nn.layers.linear import _LEAST_PRODUCTS

D = 8
BERT = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 16,
    "patch_size": 8,
}
SPREAD = FeatureDiscriminability(scale=0.5)
Inputs = tuple[Tensor, ...]


class Sizes(NamedTuple):
    """Images and their tokens, captions and their tokens; at most that many of them are real."""

    images: int
    regions: int
    texts: int
    words: int
    padded: bool = True

    def mask(self, items: int, tokens: int) -> Tensor:
        lengths = [max(1, tokens - 2 * i) if self.padded else tokens for i in range(items)]
        return lengths_mask(lengths, tokens)


def _regions(sizes: Sizes, dim: int = D) -> Inputs:
    n, size = sizes.images, sizes.regions
    return l2_normalize(torch.randn(n, size, dim)), sizes.mask(n, size)


def _pixels(sizes: Sizes, size: int = 32) -> Inputs:
    return (torch.randn(sizes.images, 3, size, size),)


def _words(sizes: Sizes) -> Inputs:
    mask = sizes.mask(sizes.texts, sizes.words)
    return torch.randint(1, 20, mask.shape) * mask, mask


def _both(sizes: Sizes) -> Inputs:
    image, image_mask = _regions(sizes)
    text_mask = sizes.mask(sizes.texts, sizes.words)
    text = l2_normalize(torch.randn(*text_mask.shape, D))
    return image, text, image_mask, text_mask


def _relations(sizes: Sizes) -> Tensor:
    related = torch.rand(sizes.images, sizes.regions, sizes.regions) > 0.5
    return (related | related.mT).float()


def _tvrn(sizes: Sizes) -> Inputs:
    image, text, image_mask, text_mask = _both(sizes)
    return image, text, _relations(sizes), image_mask, text_mask


def _refined_image(sizes: Sizes) -> Inputs:
    image, mask = _regions(sizes)
    return image, _relations(sizes), mask


def _text_and_context(sizes: Sizes) -> Inputs:
    image, text, image_mask, text_mask = _both(sizes)
    return text, image, text_mask, image_mask


def _two_parts(sizes: Sizes) -> Inputs:
    first, mask = _regions(sizes)
    return first, torch.randn_like(first), mask


def _attention(sizes: Sizes) -> Inputs:
    image, mask = _regions(sizes)
    words = sizes.mask(sizes.images, sizes.words)
    return torch.randn(*words.shape, D), image, words, mask


def _pairs(sizes: Sizes) -> Inputs:
    query, image, words, mask = _attention(sizes)
    n = sizes.images
    return torch.randn(n, D), image, mask, torch.randn(n, D), query, words


def _two_vectors(sizes: Sizes) -> Inputs:
    return torch.randn(sizes.images, D), torch.randn(sizes.images, D)


class TwoTowers(nn.Module):
    """The vectors of a CLIP-like model, which has no forward of its own."""

    def __init__(self, family: str) -> None:
        super().__init__()
        self.clip = parts.ClipModel(config=clip_config(family))

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return self.clip.image_vectors(pixels), self.clip.text_vectors(ids, mask)


def _clip(sizes: Sizes) -> Inputs:
    return *_pixels(sizes), *_words(sizes)


class Means(nn.Module):
    """The vectors of images of a mean path, or of a branch that has one."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.encoder, path = parts.RegionProjection(6, D), parts.MeanPath(4, hidden_dim=4)
        self.part = parts.GlobalBranch(path) if branch else path
        self.part.complete(self.encoder, parts.StoredTokens(5, D))

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        return self.part.image(features, mask, self.encoder(features, mask))


class Corrected(nn.Module):
    """Both sides of a correction, with a full bank."""

    def __init__(self) -> None:
        super().__init__()
        self.correction = parts.HubnessCorrection(6, neighbours=2)
        self.correction.complete(D)
        self.correction.fill(*torch.nn.functional.normalize(torch.randn(2, 6, D), dim=2))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.correction.image(image), self.correction.text(text)


#: names of the modules, with what further cases are about, and how they and their inputs are made
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[Sizes], Inputs]]] = {
    "AttentionFiltration": (lambda: parts.AttentionFiltration(D), _regions),
    "BagOfWords": (lambda: parts.BagOfWords(20, D), _words),
    "BiGRU": (lambda: parts.BiGRU(20, 6, D), _words),
    "BiGRU two layers": (lambda: parts.BiGRU(20, 6, D, num_layers=2), _words),
    "ClipModel": (lambda: TwoTowers("clip"), _clip),
    "ClipModel siglip": (lambda: TwoTowers("siglip"), _clip),
    "CrossAttentionFusion": (lambda: parts.CrossAttentionFusion(D, 1, 2), _pairs),
    "CrossAttentionSimilarity": (lambda: parts.CrossAttentionSimilarity("both"), _both),
    "CrossAttentionSimilarity smooth": (
        lambda: parts.CrossAttentionSimilarity("t2i", smooth=30.0, chunk_elements=1),
        _both,
    ),
    "ExternalSpatialAttention": (lambda: parts.ExternalSpatialAttention(D), _regions),
    "FeatureDiscriminability": (lambda: SPREAD, _regions),
    "FusionEncoder": (lambda: parts.FusionEncoder(D, 2, 2), _pairs),
    "GlobalBranch": (lambda: Means(branch=True), lambda s: _regions(s, 6)),
    "GraphReasoning": (lambda: parts.GraphReasoning(D), _regions),
    "GuidedPooling": (lambda: parts.GuidedPooling(D, norm="layer"), _regions),
    "HubnessCorrection": (Corrected, _two_vectors),
    "MaskedBatchNorm": (lambda: parts.MaskedBatchNorm(D), _regions),
    "MatchingHead": (lambda: parts.MatchingHead(D), _two_vectors),
    "MeanPath": (lambda: Means(branch=False), lambda s: _regions(s, 6)),
    "RefinedSimilarity": (lambda: parts.RefinedSimilarity(D, 6, chunk_pairs=2), _tvrn),
    "RefinedSimilarity saf": (
        lambda: parts.RefinedSimilarity(D, 6, reasoning="saf", focal="global"),
        _tvrn,
    ),
    "RefinedSimilarity prob": (lambda: parts.RefinedSimilarity(D, 6, focal="prob"), _tvrn),
    "RegionProjection": (lambda: parts.RegionProjection(6, D), lambda s: _regions(s, 6)),
    "ScanAttention": (lambda: parts.ScanAttention(D), _attention),
    "SharedLevels": (lambda: parts.SharedLevels(parts.BiGRU(20, 6, D), 2), _words),
    "StoredTokens": (lambda: parts.StoredTokens(6, D), lambda s: _regions(s, 6)),
    "TextRefinement": (lambda: parts.TextRefinement(D), _text_and_context),
    "TimmGrid": (
        lambda: parts.TimmGrid("test_byobnet", D, image_size=32, positions=True),
        _pixels,
    ),
    "TimmGrid vit": (lambda: parts.TimmGrid("test_vit", D, image_size=32), _pixels),
    "TimmLevels": (
        lambda: parts.TimmLevels(
            "test_vit",
            D,
            out_indices=(1, 4),
            image_size=32,
            block_discriminability=SPREAD,
            level_discriminability=SPREAD,
        ),
        _pixels,
    ),
    "TransformerImage": (
        lambda: parts.TransformerImage(config=VIT, dim=D),
        lambda s: _pixels(s, 16),
    ),
    "TransformerLevels": (
        lambda: parts.TransformerLevels(
            config=BERT,
            layers=(1, 2),
            dim=D,
            block_discriminability=SPREAD,
            level_discriminability=SPREAD,
        ),
        _words,
    ),
    "TransformerText": (lambda: parts.TransformerText(config=BERT, dim=D), _words),
    "TwoPartGRU": (lambda: parts.TwoPartGRU(D), _two_parts),
    "VisualRefinement": (lambda: parts.VisualRefinement(D), _refined_image),
    "WordEmbedding": (lambda: parts.WordEmbedding(20, D), _words),
}


def test_every_module_is_exported() -> None:
    modules = {
        name
        for name in parts.__all__
        if isinstance(getattr(parts, name), type) and issubclass(getattr(parts, name), nn.Module)
    }
    assert modules == {name.partition(" ")[0] for name in CASES}


#: those that take seconds; the parts that they are made of, or much alike, are in the short run
SLOW = {
    "ClipModel siglip",
    "CrossAttentionSimilarity smooth",
    "RefinedSimilarity",
    "RefinedSimilarity prob",
    "RefinedSimilarity saf",
    "TextRefinement",
    "TimmGrid vit",
    "TimmLevels",
    "TransformerLevels",
    "VisualRefinement",
}


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=[pytest.mark.long] * (one in SLOW)) for one in CASES]
)
def test_an_exported_module_takes_any_batch_and_any_number_of_tokens(name: str) -> None:
    torch.manual_seed(0)
    make, inputs_of = CASES[name]
    module = biased(make()).eval()
    traced, other = inputs_of(Sizes(3, 5, 4, 6)), inputs_of(Sizes(2, 7, 3, 11))
    changing = [
        {i: Dim.DYNAMIC for i in range(a.ndim) if a.shape[i] != b.shape[i]}
        for a, b in zip(traced, other, strict=True)
    ]
    with torch.no_grad():
        exported = torch.export.export(module, traced, dynamic_shapes=tuple(changing)).module()
        for inputs in (traced, other, inputs_of(Sizes(5, 3, 2, 4, padded=False))):
            found, expected = tree_leaves(exported(*inputs)), tree_leaves(module(*inputs))
            for one, right in zip(found, expected, strict=True):
                torch.testing.assert_close(one, right, atol=1e-5, rtol=1e-5)


def test_an_exported_module_takes_more_than_what_another_kernel_is_faster_for() -> None:
    module = parts.RegionProjection(6, D).eval()
    changing = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    traced = (torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool))
    program = torch.export.export(module, traced, dynamic_shapes=(changing, changing))
    large = torch.randn(2, _LEAST_PRODUCTS // D // 6, 6)
    found, _ = program.module()(large, torch.ones(large.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(found, module(large).tokens)
