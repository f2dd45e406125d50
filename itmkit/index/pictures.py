"""Pictures read in batches, by processes of their own where wanted."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from itmkit.data.images import BadSampleError
from itmkit.data.loader import Loader
from itmkit.data.photo import read_photo
from itmkit.data.preprocessing import Preprocessing


class Pixels(NamedTuple):
    """A batch.

    Args:
        names: of the pictures that could be read.
        pixels: of these, ``(n, 3, H, W)`` uint8; None where there is none.
        errors: of the others, why not, by name.
    """

    names: list[str]
    pixels: Tensor | None
    errors: dict[str, str]


def read_pictures(
    root: Path,
    names: list[str],
    preprocessing: Preprocessing,
    *,
    batch_size: int,
    num_workers: int,
    max_pixels: int,
) -> Iterable[Pixels]:
    """The pixels of pictures, in the order of their names.

    Args:
        root: folder of the pictures.
        names: paths inside it.
        preprocessing: from a picture to pixels.
        batch_size: pictures a batch.
        num_workers: processes that read them; 0: this one.
        max_pixels: pictures with more are not decoded.
    """
    return Loader(
        _Pictures(root, names, preprocessing, max_pixels),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
    )


class _Pictures(Dataset[tuple[str, "Tensor | str"]]):
    """The pixels of a picture, or why there are none."""

    def __init__(
        self, root: Path, names: list[str], preprocessing: Preprocessing, max_pixels: int
    ) -> None:
        self.root, self.names, self.preprocessing = root, names, preprocessing
        self.max_pixels = max_pixels

    def __getitem__(self, row: int) -> tuple[str, Tensor | str]:
        name, side = self.names[row], self.preprocessing.scaled_side
        try:
            photo = read_photo(self.root / name, side=side, max_pixels=self.max_pixels)
            return name, self.preprocessing(photo)
        except BadSampleError as error:
            return name, str(error)

    def __len__(self) -> int:
        return len(self.names)


def _collate(items: list[tuple[str, Tensor | str]]) -> Pixels:
    good = {name: found for name, found in items if isinstance(found, Tensor)}
    errors = {name: found for name, found in items if isinstance(found, str)}
    return Pixels(list(good), torch.stack(list(good.values())) if good else None, errors)
