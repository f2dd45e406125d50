"""What an audit is of, images and captions, and the same in another order, as noise, or padded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from itmkit.checks import InputError, check_count, integer_vector, type_of
from itmkit.data.batch import Batch, Images
from itmkit.data.padding import padded_regions, padded_texts
from itmkit.testing.batches import Rows, joined, taken


class Pairs(NamedTuple):
    """What is audited: images and captions, and which belongs to which.

    Args:
        images: ``n`` of them: :class:`~itmkit.data.Images`, or a tensor with a row an image.
        texts: ``m`` of them: :class:`~itmkit.data.Texts`, or a tensor with a row a caption.
        image_ids: ``(n,)`` integers, each once.
        text_image_ids: ``(m,)`` integers, the id of the image that each caption belongs to.
    """

    images: Any
    texts: Any
    image_ids: Tensor
    text_image_ids: Tensor


def as_pairs(data: Any, limit: int | None) -> Pairs:
    """The data of :func:`itmkit.testing.audit` in one form, at most ``limit`` images of them."""
    if isinstance(data, tuple) and len(data) == 4 and not isinstance(data[0], Batch):
        pairs = Pairs(*data)
    elif isinstance(data, Tensor) or not isinstance(data, (Batch, Iterable)):
        raise InputError(
            f"data is {type_of(data)}; expected batches, or images, texts, image_ids and "
            "text_image_ids"
        )
    else:
        whole = joined([data] if isinstance(data, Batch) else data, limit)
        pairs = Pairs(whole.images, whole.texts, whole.image_ids, whole.text_image_ids)
    n, m = len(pairs.images), len(pairs.texts)
    ids = integer_vector("image_ids", pairs.image_ids, n)
    owners = integer_vector("text_image_ids", pairs.text_image_ids, m)
    if n < 2:
        raise InputError(f"data has {n} images; expected two or more")
    if len(ids.unique()) != n:
        raise InputError("image_ids has an id twice; expected each image once")
    if not m or not torch.isin(owners, ids).all():
        raise InputError("text_image_ids has an id that no image has; expected captions of images")
    pairs = pairs._replace(image_ids=ids, text_image_ids=owners)
    if limit is None or limit >= n:
        return pairs
    check_count(2, limit=limit)
    return part_of(pairs, torch.arange(limit), torch.isin(owners, ids[:limit]).nonzero()[:, 0])


def part_of(pairs: Pairs, rows: Tensor, columns: Tensor) -> Pairs:
    """Images and captions by their numbers."""
    return Pairs(
        taken(pairs.images, rows),
        taken(pairs.texts, columns),
        pairs.image_ids[rows],
        pairs.text_image_ids[columns],
    )


def reordered(pairs: Pairs, generator: Generator) -> Pairs:
    """The same images and captions in a random order."""
    rows, columns = (
        torch.randperm(len(ids), generator=generator)
        for ids in (pairs.image_ids, pairs.text_image_ids)
    )
    return part_of(pairs, rows, columns)


def shards_of(count: int, shards: int) -> list[Tensor]:
    """Numbers of the items of interleaved shards: with two, every second one."""
    return [torch.arange(first, count, shards) for first in range(shards)]


def derangement(count: int, generator: Generator) -> Tensor:
    """A random order that leaves nothing in its place."""
    order = torch.randperm(count, generator=generator)
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def noise(part: Rows, generator: Generator) -> Rows:
    """Noise with the spread of what it replaces, and the sizes and masks of other rows."""
    part = taken(part, derangement(len(part), generator))
    if isinstance(part, Tensor):
        return _scattered(part, generator)
    if isinstance(part, Images):
        return replace(part, features=_gaussian(part.features, part.mask, generator))
    features = part.features
    if features is not None:
        features = _gaussian(features, part.mask, generator)
    free = part.mask.clone()
    last = part.mask.sum(1, keepdim=True) - 1
    for places in (torch.zeros_like(last), last.clamp(min=0)):
        if len(part.ids.gather(1, places).unique()) == 1:  # such as [CLS] and [SEP]
            free.scatter_(1, places, False)
    ids, words = part.ids.clone(), part.ids[free]
    ids[free] = words[torch.randperm(len(words), generator=generator)]
    return replace(part, ids=ids, features=features)


def _scattered(values: Tensor, generator: Generator) -> Tensor:
    """The values of every column in an order of its own."""
    order = torch.rand(values.shape, generator=generator).argsort(0)
    return values.gather(0, order.to(values.device))


def _gaussian(values: Tensor, mask: Tensor | None, generator: Generator) -> Tensor:
    """Noise of the mean and spread of every channel of pixels, or feature; zero on padding."""
    drawn = torch.randn(values.shape, generator=generator)
    if values.ndim == 4:
        mean, std = values.mean((0, 2, 3), keepdim=True), values.std((0, 2, 3), keepdim=True)
        return drawn * std + mean
    real = values.flatten(0, 1) if mask is None else values[mask]
    found = drawn * real.std(0) + real.mean(0)
    return found if mask is None else found * mask[:, :, None]


def with_wrong_padding(part: Rows) -> Rows:
    """With other values on the padding; the same object where there is none."""
    mask = None if isinstance(part, Tensor) else part.mask
    if isinstance(part, Tensor) or mask is None or bool(mask.all()):
        return part
    return padded_regions(part, 0) if isinstance(part, Images) else padded_texts(part, 0)
