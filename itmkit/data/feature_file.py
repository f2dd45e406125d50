"""Image features on disk: those of a split, its augmented views, and what was noted of them."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from itmkit.checks import InputError
from itmkit.data.images import BadSampleError
from itmkit.data.mapped_array import MappedArray, NotFiniteError, open_array
from itmkit.data.preprocessing import Preprocessing
from itmkit.files import read_json, read_text, user_path


class FeatureFile(MappedArray):
    """A ``.npy`` file of image features, read image by image.

    Args:
        path: of an array, float16, float32 or float64: ``(n, N, D)``; or ``(R, D)``, all regions of
            all images, where ``{split}_counts.npy`` beside it says how many each image has.
        max_regions: how many regions of an image are read, the first ones; all where None.

    Attributes:
        regions: of every image; None where that differs.
        starts: ``(n + 1,)`` where the regions of an image begin, and where the last ones end; None
            where all images have as many.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is no whole ``.npy`` file, or of another rank or type, or the counts do
            not fit it.
    """

    def __init__(self, path: str | Path, *, max_regions: int | None = None) -> None:
        self.starts: np.ndarray[Any, Any] | None = None
        counts = counts_path(user_path(path))
        if counts is not None and counts.exists():
            super().__init__(path, ("regions", "dim"))
            self.starts = _read_starts(counts, self.path, self.shape[0])
        else:
            super().__init__(path, ("images", "regions", "dim"))
        self.max_regions = max_regions

    @property
    def regions(self) -> int | None:
        """Of every image; None where that differs."""
        return None if self.starts is not None else len(range(self.shape[1])[: self.max_regions])

    def spans(self, rows: Sequence[int]) -> list[slice]:
        """Where the regions of some images are in the file, where their numbers differ."""
        assert self.starts is not None
        ends = (self.starts[row + 1] for row in rows)
        found = [
            slice(int(self.starts[row]), int(end)) for row, end in zip(rows, ends, strict=True)
        ]
        if self.max_regions is None:
            return found
        return [slice(own.start, min(own.start + self.max_regions, own.stop)) for own in found]

    def read(self, rows: Sequence[int]) -> Tensor:
        """The features of some images as float32 ``(len(rows), N, D)``, padded with zeros.

        Args:
            rows: images, from 0 to the length of the file less 1.

        Raises:
            BadSampleError: if those of an image are not all finite.
            InputError: if the file is not the one that was opened.
        """
        try:
            if self.starts is not None:
                return torch.from_numpy(self.padded(self.spans(rows), slice(None)))
            # numpy's memory, not torch's: numpy asks for huge pages, filled in a third of the time
            shape = (len(rows), 1, len(range(self.shape[1])[: self.max_regions]), self.shape[2])
            block = np.empty(shape, dtype=np.float32)
            own = [slice(row, row + 1) for row in rows]
            self.fill(block, own, slice(self.max_regions))  # type: ignore[arg-type]
        except NotFiniteError as error:
            row, region = error.place[:2]
            if self.starts is not None:
                region = row
                row = int(np.searchsorted(self.starts, region, side="right")) - 1
                region -= int(self.starts[row])
            raise BadSampleError(
                f"{self.path} has a value that is not finite in row {row}: "
                f"{error.value:g} in its region {region}"
            ) from None
        return torch.from_numpy(block[:, 0])

    def __len__(self) -> int:
        return len(self.starts) - 1 if self.starts is not None else self.shape[0]


def counts_path(path: Path) -> Path | None:
    """Where the numbers of regions of a ``{split}_ims.npy`` are; None of a file of another name."""
    name = path.name.removesuffix("_ims.npy")
    return None if name == path.name else path.with_name(f"{name}_counts.npy")


def _read_starts(path: Path, features: Path, regions: int) -> np.ndarray[Any, Any]:
    counts = open_array(path)
    if counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise InputError(
            f"{path} has {counts.dtype} of the shape {counts.shape}; expected integers (images,)"
        )
    if len(counts) and counts.min() < 1:
        row = int(counts.argmin())
        raise InputError(f"{path} has {counts[row]} regions in row {row}; expected 1 or more")
    starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    if starts[-1] != regions:
        raise InputError(
            f"{path} has {starts[-1]} regions in all; expected {regions}, the rows of "
            f"{features.name}"
        )
    return starts


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, without white space around them.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not UTF-8.
    """
    # not str.splitlines: a caption may contain rarer separators
    lines = read_text(path).removesuffix("\n").split("\n")
    return [line.strip() for line in lines] if lines != [""] else []


def read_names(path: Path) -> list[str]:
    """The names of a ``{split}_ids.txt``, a line each; empty lines at its end are none.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not UTF-8, or a line is empty.
    """
    names = read_lines(path)
    while names and not names[-1]:
        names.pop()
    if "" in names:
        raise InputError(f"{path} has an empty line {names.index('') + 1}; expected a name")
    return names


def open_split(folder: Path, split: str, *, max_regions: int | None = None) -> FeatureFile:
    """The features of a split in a folder in the layout of SCAN.

    Raises:
        FileNotFoundError: if there are none; the message lists the splits that there are.
        InputError: as of :class:`FeatureFile`.
    """
    return FeatureFile(split_path(folder, split, "_ims.npy"), max_regions=max_regions)


def split_path(folder: Path, split: str, ending: str) -> Path:
    """The file of a split in a folder.

    Raises:
        FileNotFoundError: if there is none; the message lists the splits with such a file.
    """
    path = folder / f"{split}{ending}"
    if not path.exists() and folder.is_dir():
        found = sorted(file.name.removesuffix(ending) for file in folder.glob(f"*{ending}"))
        there = f"the splits {', '.join(found)}" if found else "no split"
        raise FileNotFoundError(f"{path} is missing; {folder} holds {there}")
    return path


def view_path(folder: Path, split: str, view: int) -> Path:
    """Where the features of an augmented view of the images are, from 1 on."""
    return folder / f"{split}_ims.view{view}.npy"


def open_views(folder: Path, split: str, features: FeatureFile) -> list[FeatureFile]:
    """The augmented views that were stored beside the features of a split, in their order.

    Raises:
        InputError: if one is not of the same images and the same backbone.
    """
    found: list[FeatureFile] = []
    notes = folder / f"{split}_features.json"
    while (path := view_path(folder, split, len(found) + 1)).exists():
        view = FeatureFile(path, max_regions=features.max_regions)
        own, plain = read_json(path.with_suffix(".json")), read_json(notes)
        for key in ("backbone", "weights", "images", "preprocessing", "shape"):
            if own.get(key) != plain.get(key) or view.shape != features.shape:
                raise InputError(
                    f"{path} is no view of the images of {features.path.name}: {key} is "
                    f"{own.get(key)!r}, not {plain.get(key)!r} as in {notes.name}; extract anew"
                )
        found.append(view)
    return found


def read_grid(path: Path) -> tuple[int, int] | None:
    """The rows and columns of the grid that ``itmkit extract`` noted beside its features, if any.

    Raises:
        InputError: if the file is not what ``itmkit extract`` writes.
    """
    if not path.exists():
        return None
    try:
        grid = read_json(path)["grid"]
        if not grid:
            return None
        height, width = map(operator.index, grid)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is not what itmkit extract writes: {error!r}") from error
    if height < 1 or width < 1:
        raise InputError(f"{path} has the grid {grid}; expected numbers of rows and columns")
    return height, width


def read_preprocessing(path: Path) -> Preprocessing | None:
    """How the photos of extracted features became pixels, as ``itmkit extract`` noted it; or None.

    Raises:
        InputError: if the file is not what ``itmkit extract`` writes.
    """
    found = _notes(path).get("preprocessing")
    return found and Preprocessing.from_dict(found, source=f"preprocessing in {path}")


def read_backbone(path: Path) -> dict[str, str] | None:
    """Which model made extracted features, as ``itmkit extract`` noted it; or None."""
    notes = _notes(path)
    keys = ("backbone", "weights")
    return {key: notes[key] for key in keys} if notes.keys() >= set(keys) else None


def _notes(path: Path) -> dict[str, Any]:
    """What was noted beside features; empty where there is nothing, or something else."""
    notes = read_json(path) if path.exists() else {}
    return notes if isinstance(notes, dict) else {}


def grid_boxes(height: int, width: int) -> Tensor:
    """The boxes of the cells of a grid, row by row, relative to the image.

    Returns:
        ``(height * width, 4)`` corners ``x1, y1, x2, y2`` in [0, 1].

    Example:
        >>> grid_boxes(1, 2).tolist()
        [[0.0, 0.0, 0.5, 1.0], [0.5, 0.0, 1.0, 1.0]]
    """
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    corners = torch.stack([x, y, x + 1, y + 1], dim=-1).reshape(-1, 4).float()
    return corners / torch.tensor([width, height, width, height])
