"""The same batch in other forms: some rows, more padding, more digits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from itmkit.data.batch import Batch, Images, Texts


def doubled(batch: Batch) -> Batch:
    """The same batch in float64."""
    return replace(batch, images=_of_images(batch.images, lambda x: x.double()))


def _of_images(images: Images, change: Callable[[Tensor], Tensor]) -> Images:
    """The same with each tensor of numbers changed."""
    fields = {name: value for name, value in vars(images).items() if value is not None}
    floats = {name: change(value) for name, value in fields.items() if value.is_floating_point()}
    return replace(images, **floats)


def rows_of_images(images: Images, rows: slice | Sequence[int]) -> Images:
    """Some of the images."""
    fields = {name: value for name, value in vars(images).items() if value is not None}
    return Images(**{name: value[rows] for name, value in fields.items()})


def unpadded(texts: Texts, row: int) -> Texts:
    """One caption without its padding."""
    length = max(1, int(texts.mask[row].sum()))
    return Texts(texts.ids[row : row + 1, :length], texts.mask[row : row + 1, :length])


def padded_texts(texts: Texts, words: int) -> Texts:
    """The same captions with more padding, and a word in it."""
    mask = pad(texts.mask, (0, words))
    return Texts(pad(texts.ids, (0, words)).masked_fill(~mask, int(texts.ids.max())), mask)


def padded_regions(images: Images, regions: int) -> Images:
    """The same images with more padded regions, and nonsense in them."""
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
