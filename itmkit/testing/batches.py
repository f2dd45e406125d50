"""The same batch in other forms: some rows, several joined, more digits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from itmkit.checks import InputError
from itmkit.data.batch import Batch, Images, Texts, check_batch

Part = TypeVar("Part", Images, Texts)
Rows = TypeVar("Rows", Images, Texts, Tensor)


def doubled(batch: Batch) -> Batch:
    """The same batch in float64."""
    return replace(batch, images=_doubled(batch.images), texts=_doubled(batch.texts))


def _doubled(part: Part) -> Part:
    fields = {name: value for name, value in vars(part).items() if value is not None}
    floats = {name: value.double() for name, value in fields.items() if value.is_floating_point()}
    return replace(part, **floats)


def joined(batches: Iterable[Batch], limit: int | None = None) -> Batch:
    """All images and captions of some batches, each once, padded to the longest.

    Args:
        batches: the batches.
        limit: number of images after which no further batch is read; None for all.
    """
    images: list[Images] = []
    texts: list[Texts] = []
    ids: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for batch in batches:
        check_batch(batch)
        images.append(batch.images)
        texts.append(batch.texts)
        ids[0].append(batch.image_ids)
        ids[1].append(batch.text_image_ids)
        ids[2].append(batch.text_ids)
        if limit is not None and sum(map(len, images)) >= limit:
            break
    if not images:
        raise InputError("data has no batches; expected at least one")
    image_ids, owners, text_ids = (torch.cat(part) for part in ids)
    rows, columns = first_places(image_ids), first_places(text_ids)
    return Batch(
        taken(_stacked(images), rows),
        taken(_stacked(texts), columns),
        image_ids[rows],
        owners[columns],
        text_ids[columns],
    )


def first_places(ids: Tensor) -> Tensor:
    """Where each id comes for the first time, in this order.

    Example:
        >>> first_places(torch.tensor([7, 5, 7, 2])).tolist()
        [0, 1, 3]
    """
    places: dict[int, int] = {}
    for place, value in enumerate(ids.tolist()):
        places.setdefault(value, place)
    return torch.tensor(list(places.values()), dtype=torch.int64)


def taken(part: Rows, rows: Tensor) -> Rows:
    """Rows of images, captions or a tensor, by their numbers, padded as before."""
    return part[rows] if isinstance(part, Tensor) else part.rows(rows)


def _stacked(parts: Sequence[Part]) -> Part:
    """All rows, padded at the end of every dimension to the largest; masks say where."""
    fields: dict[str, list[Tensor]] = {}
    for part in parts:
        for name, value in vars(part).items():
            if value is not None:
                fields.setdefault(name, []).append(value)
    if isinstance(parts[0], Images) and parts[0].features.ndim == 3:
        fields["mask"] = [
            torch.ones(part.features.shape[:2], dtype=torch.bool)
            if (mask := part.mask) is None
            else mask
            for part in parts
        ]
        if all(bool(mask.all()) for mask in fields["mask"]):
            del fields["mask"]
    whole = {}
    for name, values in fields.items():
        sizes = [max(value.shape[i] for value in values) for i in range(1, values[0].ndim)]
        whole[name] = torch.cat([_filled(value, sizes) for value in values])
    return type(parts[0])(**whole)


def _filled(value: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - own for size, own in zip(sizes, value.shape[1:], strict=True)]
    return pad(value, [n for size in reversed(missing) for n in (0, size)]) if missing else value
