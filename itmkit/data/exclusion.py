"""Captions and images that are left out of training, from a list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from itmkit.checks import InputError
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.table import Table, read_table


def excluded_rows(exclude: str | Path) -> list[tuple[str, str]]:
    """The rows of a list: an image, and a caption of it; ``""`` for all captions.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no such table.
    """
    _, images, captions = _read(exclude)
    return [(str(image), caption or "") for image, caption in zip(images, captions, strict=True)]


def _read(exclude: str | Path) -> tuple[Table, list[Any], list[Any]]:
    """The table, its images, and their captions."""
    table = read_table(exclude, allow_empty=True)
    images = table.columns[table.needed("", None, ["image"])]
    column = table.find("", None, ["caption"])
    return table, images, [None] * len(images) if column is None else table.columns[column]


def kept_captions(dataset: ImageTextDataset, exclude: str | Path | None) -> Tensor:
    """The rows of the captions that a list does not exclude.

    Args:
        dataset: the training split.
        exclude: a table (CSV, TSV, JSONL or Parquet) with the column ``image``, the name of an
            image as the dataset has it, and where it likes ``caption``, one of its captions word
            for word. A row without a caption excludes the image with all of them. No rows, or
            None: nothing.

    Returns:
        ``(k,)`` int64, in order.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it names an image or a caption that the split does not have, or excludes all.
    """
    if exclude is None:
        return torch.arange(len(dataset.captions))
    table, images, captions = _read(exclude)
    rows = {name: row for row, name in enumerate(dataset.names)}
    kept = torch.ones(len(dataset.captions), dtype=torch.bool)
    for place, (image, caption) in enumerate(zip(images, captions, strict=True)):
        if image not in rows:
            raise InputError(
                f"{table.at(place)} has the image {image!r}; expected one of the "
                f"{len(dataset)} images of the split {dataset.split!r}"
            )
        own = dataset.captions_of(rows[image])
        named = [row for row in own if dataset.captions[row] == caption] if caption else own
        if caption and not named:
            raise InputError(
                f"{table.at(place)} has the caption {caption[:60]!r}; expected one of the image "
                f"{image!r}, word for word"
            )
        kept[named] = False
    if not kept.any():
        raise InputError(
            f"{table.path} excludes all {len(kept)} captions of the split {dataset.split!r}; "
            "expected some that are left"
        )
    return kept.nonzero()[:, 0]
