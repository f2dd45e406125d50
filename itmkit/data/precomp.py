"""Precomputed image features in the layout of SCAN."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from itmkit.checks import InputError, check_optional_count
from itmkit.data.captions import Captions, check_unique
from itmkit.data.dataset import CaptionedImages
from itmkit.data.feature_file import FeatureFile, open_split, read_lines, read_names
from itmkit.data.stored_features import stored_features
from itmkit.files import check_folder, read_json, user_path


class PrecompDataset(CaptionedImages):
    """One split of a folder in the layout of SCAN.

    ===========================  ==================================================================
    ``{split}_ims.npy``          features ``(n, N, D)``, float16 or float32; never loaded whole
    ``{split}_counts.npy``       optional: ``(n,)`` regions of each image, where they differ; the
                                 features are then ``(R, D)``, image by image, and boxes ``(R, 4)``
    ``{split}_caps.txt``         UTF-8, a caption a line; five for every image, in their order.
                                 ``itmkit extract`` writes none for images without captions
    ``{split}_ids.txt``          optional: a name a line, one for every image (or row)
    ``{split}_boxes.npy``        optional: ``(n, N, 4)`` corners x1, y1, x2, y2 in [0, 1] or pixels
    ``{split}_img_sizes.npy``    optional: ``(n, 2)`` width and height; boxes are then in pixels
    ``{split}_iou.npy``          optional: ``(n, N, N)`` IoU of the boxes, or other relations of the
                                 regions, in [0, 1]; never loaded whole
    ``{split}_cap_images.txt``   optional: for every caption the row of its image, where images
                                 have other than five captions
    ``{split}_features.json``    optional, of ``itmkit extract``: names the grid
    ``{split}_ims.view1.npy`` …  optional, of ``itmkit extract --views``: augmented views of the
                                 images, of which training draws one, by seed, epoch and caption
    ===========================  ==================================================================

    Images may be stored once (five captions a row) or five times (a caption a row, each row five
    times over); which of the two follows from the numbers of rows and lines.

    Args:
        split: the split, such as ``"train"``, ``"dev"`` or ``"test"``.
        root: the folder.
        max_regions: how many regions of an image are used, the first ones; all where None.

    Raises:
        FileNotFoundError: if the features or the captions are missing; the message lists the splits
            that the folder has.
        InputError: if a file is of the wrong form, or the files do not fit each other.
    """

    def __init__(self, split: str, root: str | Path, *, max_regions: int | None = None) -> None:
        check_optional_count(max_regions=max_regions)
        folder = user_path(root)
        check_folder("root", folder)
        features = open_split(folder, split, max_regions=max_regions)
        captions = scan_captions(split, folder, features)
        every = len(features) // len(captions.names)
        rows = range(0, len(features), every)
        images = stored_features(folder, split, features, captions.names, rows, every=every)
        super().__init__(captions, images)


def scan_captions(split: str, folder: Path, features: FeatureFile) -> Captions:
    """The captions of a split in the layout of SCAN, which :class:`PrecompDataset` describes.

    Args:
        split: name of the split.
        folder: where its files are.
        features: of the split; a row an image, or five rows an image that are the same.
    """
    rows = len(features)
    if rows == 0:
        raise InputError(f"{features.path} has no images: the split {split!r} is empty")
    path = folder / f"{split}_caps.txt"
    assigned = folder / f"{split}_cap_images.txt"
    every = 1
    counts = [len(read_names(assigned))] if assigned.exists() else [rows, 5 * rows]
    sentences = _read_sentences(path, folder / f"{split}_features.json", counts)
    if sentences is None:
        caption_images = torch.tensor([], dtype=torch.int64)
    elif assigned.exists():
        caption_images = _read_rows(assigned, len(sentences), rows)
    elif len(sentences) == 5 * rows:
        caption_images = torch.arange(rows).repeat_interleave(5)
    elif len(sentences) != rows:
        raise InputError(
            f"{path} has {len(sentences)} lines; expected {5 * rows} (five for each of the {rows} "
            f"rows of {features.path.name}) or {rows} (one for each)"
        )
    elif _five_times(features):
        every = 5
        caption_images = torch.arange(rows // 5).repeat_interleave(5)
    else:
        caption_images = torch.arange(rows)
    names = _read_names(folder / f"{split}_ids.txt", rows // every)
    return Captions(split, names, sentences, caption_images)


def _five_times(features: FeatureFile) -> bool:
    groups, rest = divmod(len(features), 5)
    if rest or features.regions is None:
        return False
    return all(
        np.array_equal(features.array[5 * group], features.array[5 * group + other])
        for group in {0, groups // 2, groups - 1}
        for other in range(1, 5)
    )


def _read_sentences(path: Path, notes: Path, counts: list[int]) -> list[str] | None:
    """The captions, without empty lines at the end that are too many; None where noted so."""
    if not path.exists() and notes.exists():
        found = read_json(notes)
        if isinstance(found, dict) and found.get("captions") == 0:
            return None
    captions = [re.sub("[ \t\r]+", " ", line) for line in read_lines(path)]
    while captions and not captions[-1] and len(captions) not in counts:
        captions.pop()
    return captions


def _read_names(path: Path, count: int) -> list[str]:
    if not path.exists():
        return [str(row) for row in range(count)]
    names = read_names(path)
    if len(names) == 5 * count:
        names = names[::5]
    if len(names) != count:
        raise InputError(f"{path} has {len(names)} lines; expected {count}, one for every image")
    check_unique(names, path)
    return names


def _read_rows(path: Path, captions: int, images: int) -> Tensor:
    lines = read_names(path)
    if len(lines) != captions:
        raise InputError(f"{path} has {len(lines)} lines; expected {captions}, one a caption")
    found = []
    for number, line in enumerate(lines, 1):
        if not (line.isdecimal() and len(line) < 10 and int(line) < images):
            raise InputError(
                f"{path} has a line that is no row number: line {number} is {line[:40]!r}; "
                f"expected the row of an image, 0 … {images - 1}"
            )
        found.append(int(line))
    return torch.tensor(found)
