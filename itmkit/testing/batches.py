"""The same batch in other forms: some rows, more padding, more digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch.nn.functional import pad

from itmkit.data.batch import Batch, Images, Texts

Part = TypeVar("Part", Images, Texts)


def doubled(batch: Batch) -> Batch:
    """The same batch in float64."""
    return replace(batch, images=_doubled(batch.images), texts=_doubled(batch.texts))


def _doubled(part: Part) -> Part:
    fields = {name: value for name, value in vars(part).items() if value is not None}
    floats = {name: value.double() for name, value in fields.items() if value.is_floating_point()}
    return replace(part, **floats)


def rows_of_images(images: Images, rows: slice | Sequence[int]) -> Images:
    """Some of the images."""
    fields = {name: value for name, value in vars(images).items() if value is not None}
    return Images(**{name: value[rows] for name, value in fields.items()})


def rows_of_texts(texts: Texts, rows: slice) -> Texts:
    """Some of the captions, with no more padding than they need."""
    length = max(1, int(texts.mask[rows].sum(1).max()))
    fields = {name: value for name, value in vars(texts).items() if value is not None}
    return Texts(**{name: value[rows, :length] for name, value in fields.items()})


def unpadded(texts: Texts, row: int) -> Texts:
    """One caption without its padding."""
    return rows_of_texts(texts, slice(row, row + 1))


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
