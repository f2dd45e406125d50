"""The same images and captions with less padding, or with more."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from itmkit.data.batch import Images, Texts

Rows = TypeVar("Rows", Images, Texts, Tensor)


def trimmed(part: Rows) -> Rows:
    """The same images or captions with no more padding than they need."""
    mask = None if isinstance(part, Tensor) else part.mask
    if isinstance(part, Tensor) or mask is None or not len(mask):
        return part
    length = max(1, int(mask.sum(1).max()))
    fields = {name: value[:, :length] for name, value in vars(part).items() if value is not None}
    if "relations" in fields:
        fields["relations"] = fields["relations"][:, :, :length]
    return replace(part, **fields)


def unpadded(texts: Texts, row: int) -> Texts:
    """One caption without its padding."""
    return trimmed(texts.rows(slice(row, row + 1)))


def padded_texts(texts: Texts, words: int) -> Texts:
    """The same captions with more padding, and a word in it."""
    mask = pad(texts.mask, (0, words))
    ids = pad(texts.ids, (0, words)).masked_fill(~mask, int(texts.ids.max()))
    features = texts.features
    if features is not None:
        features = pad(features, (0, 0, 0, words)).masked_fill(~mask[:, :, None], 7.0)
    return Texts(ids, mask, features)


def padded_regions(images: Images, regions: int) -> Images:
    """The same images with more padded regions, and wrong numbers in them."""
    mask = images.mask
    if mask is None:
        mask = torch.ones(images.features.shape[:2], dtype=torch.bool)
    mask = pad(mask, (0, regions))
    real = mask[:, :, None] & mask[:, None, :]
    boxes, relations = images.boxes, images.relations
    return Images(
        pad(images.features, (0, 0, 0, regions)).masked_fill(~mask[:, :, None], 7.0),
        mask,
        None if boxes is None else pad(boxes, (0, 0, 0, regions)),
        None
        if relations is None
        else pad(relations, (0, regions, 0, regions)).masked_fill(~real, 0.7),
    )
