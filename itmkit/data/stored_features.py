"""Features on disk as images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from itmkit.checks import InputError
from itmkit.data.batch import Images
from itmkit.data.captions import check_unique, plain_name
from itmkit.data.feature_file import (
    FeatureFile,
    grid_boxes,
    open_split,
    open_views,
    read_backbone,
    read_grid,
    read_names,
    read_preprocessing,
)
from itmkit.data.images import ImageSource, Regions
from itmkit.data.mapped_array import open_array
from itmkit.data.preprocessing import Preprocessing
from itmkit.files import check_folder, user_path


class StoredFeatures(ImageSource):
    """Region or grid features of images, read from a file image by image.

    Images with different numbers of regions are padded in a batch, with a mask.

    Args:
        names: one an image.
        features: the file.
        rows: for every image its row in the file.
        boxes: relative corners; ``(1, N, 4)`` of all images, ``(r, N, 4)`` a row of the file each,
            or ``(R, 4)`` of the regions of a file of images with different numbers; or None.
        relations: a file ``(r, N, N)``, a row of ``features`` each; or None.
        preprocessing: of the pixels that the features were made of, where known.
        backbone: the model that made them, where known: its name and a hash of its weights.
        views: further files like ``features``, of augmented views of the same images: training
            reads one of all, drawn by the seed of the image; else ``features`` is read.

    ``boxes`` and ``relations`` may have a row for several equal ones of ``features``.
    """

    def __init__(
        self,
        names: Sequence[str],
        features: FeatureFile,
        rows: Sequence[int],
        *,
        boxes: Tensor | None = None,
        relations: FeatureFile | None = None,
        preprocessing: Preprocessing | None = None,
        backbone: Mapping[str, str] | None = None,
        views: Sequence[FeatureFile] = (),
    ) -> None:
        self.names, self.features, self.rows, self.boxes = names, features, rows, boxes
        self.relations, self.preprocessing = relations, preprocessing
        self.backbone = backbone
        self.views, self.augments = [features, *views], bool(views)

    def check_same_backbone(self, expected: Mapping[str, str] | None, source: str) -> None:
        """Raise unless the features are of the same model as others, where both are known.

        Args:
            expected: ``backbone`` of the others.
            source: of the others.

        Raises:
            InputError: with both models.
        """
        own = self.backbone
        if own is not None and expected is not None and dict(own) != dict(expected):
            made = [f"{one['backbone']!r} (weights {one['weights']})" for one in (own, expected)]
            raise InputError(
                f"{self.features.path} was made by {made[0]}; expected {made[1]}, as {source}"
            )

    def image(self, row: int) -> Regions:
        """The regions of an image, features as float32."""
        return self.drawn(row, None)

    def drawn(self, row: int, seed: int | None) -> Regions:
        """As :meth:`image`, of the view that a seed draws."""
        images = self.read([row], None if seed is None else [seed])
        rest = (images.boxes, images.relations)
        return Regions(images.features[0], *(None if part is None else part[0] for part in rest))

    def read(self, rows: Sequence[int], seeds: Sequence[int] | None = None) -> Images:
        """As :meth:`image`, for several rows, which is faster.

        Raises:
            BadSampleError: if a value is not finite.
            InputError: if a file is not the one that was opened, or relations are out of range.
        """
        for row in rows:
            if not 0 <= row < len(self):
                raise IndexError(f"row is {row}; expected 0 … {len(self) - 1}")
        own = [self.rows[row] for row in rows]
        if seeds is None or not self.augments:
            features = self.features.read(own)
        else:
            features = self._read_views(own, [seed % len(self.views) for seed in seeds])
        if self.features.regions is None:
            return self._with_mask(features, own)
        boxes = None
        if self.boxes is not None:
            boxes = self.boxes[_same_rows(own, self.boxes, self.features), : features.shape[1]]
        return Images(features, boxes=boxes, relations=self._read_relations(own))

    def _with_mask(self, features: Tensor, rows: Sequence[int]) -> Images:
        spans = self.features.spans(rows)
        counts = torch.tensor([span.stop - span.start for span in spans])
        boxes = None
        if self.boxes is not None:
            boxes = pad_sequence([self.boxes[span] for span in spans], batch_first=True)
        largest = features.shape[1]
        equal = bool((counts == largest).all())
        mask = None if equal else torch.arange(largest)[None, :] < counts[:, None]
        return Images(features, mask, boxes)

    def _read_views(self, rows: Sequence[int], views: Sequence[int]) -> Tensor:
        wanted = torch.tensor(views)
        out: Tensor | None = None
        for view in wanted.unique().tolist():
            places = (wanted == view).nonzero().flatten()
            part = self.views[view].read([rows[place] for place in places.tolist()])
            out = part.new_empty(len(rows), *part.shape[1:]) if out is None else out
            out[places] = part
        assert out is not None
        return out

    def _read_relations(self, rows: Sequence[int]) -> Tensor | None:
        file = self.relations
        if file is None:
            return None
        relations = file.read(_same_rows(rows, file, self.features))
        relations = relations[..., : self.features.max_regions]
        outside = ((relations < -1e-3) | (relations > 1 + 1e-3)).flatten(1).any(1)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            low, high = relations[first].aminmax()
            raise InputError(
                f"{file.path} goes from {low:g} to {high:g} in row {rows[first]}; expected [0, 1]"
            )
        return relations.clamp(0, 1)


def stored_features(
    folder: Path,
    split: str,
    features: FeatureFile,
    names: Sequence[str],
    rows: Sequence[int],
    *,
    every: int = 1,
    views: bool = True,
) -> StoredFeatures:
    """The features of some images, with all that stands beside them in the folder.

    Args:
        folder: in the layout of SCAN, see :class:`PrecompDataset`.
        split: of which the features are.
        features: of the split.
        names: of the images.
        rows: for every image its row in ``features``.
        every: how many rows of ``features`` are the same image, one behind the other.
        views: whether training draws from the augmented views, where some were stored.

    Raises:
        InputError: if a file is of the wrong form, or does not fit the features.
    """
    return StoredFeatures(
        names,
        features,
        rows,
        boxes=_read_boxes(folder, split, features, every),
        relations=_open_relations(folder, split, features, every),
        views=open_views(folder, split, features) if views else (),
        preprocessing=read_preprocessing(folder / f"{split}_features.json"),
        backbone=read_backbone(folder / f"{split}_features.json"),
    )


def extracted_features(
    split: str, names: Sequence[str], folder: str | Path, *, views: bool = True
) -> StoredFeatures:
    """What ``itmkit extract`` or ``convert`` wrote of some images, found by their names.

    Args:
        split: of which the features are.
        names: of the images, in the order wanted; the file may have others too.
        folder: where they are.
        views: whether training draws from the augmented views, where some were stored.

    Raises:
        FileNotFoundError: if the folder or a file is missing.
        InputError: if an image has no features, or the files do not fit each other.
    """
    folder = user_path(folder)
    check_folder("features", folder)
    features = open_split(folder, split)
    path = folder / f"{split}_ids.txt"
    found = [plain_name(name) for name in read_names(path)]
    if len(found) != len(features):
        raise InputError(
            f"{path} has {len(found)} names; expected {len(features)}, one for every row of "
            f"{features.path.name}"
        )
    check_unique(found, path)
    stored = {name: row for row, name in enumerate(found)}
    missing = [name for name in names if plain_name(name) not in stored]
    if missing:
        raise InputError(
            f"{path} lacks {missing[0]!r}, in all {len(missing)} of the {len(names)} images of "
            f"the split {split!r}"
        )
    rows = [stored[plain_name(name)] for name in names]
    return stored_features(folder, split, features, names, rows, views=views)


def _same_rows(rows: Sequence[int], part: Sized, features: FeatureFile) -> list[int]:
    """The rows of what has one for each, for several equal ones or for all of ``features``."""
    every = len(features) // len(part)
    return [row // every for row in rows]


def _open_relations(
    folder: Path, split: str, features: FeatureFile, every: int
) -> FeatureFile | None:
    path = folder / f"{split}_iou.npy"
    if not path.exists():
        return None
    if features.regions is None:
        raise InputError(
            f"{path} is of images with as many regions each, those of {features.path.name} have "
            "different numbers; expected none: relation_threshold relates regions by their boxes"
        )
    relations = FeatureFile(path, max_regions=features.max_regions)
    rows, regions, _ = features.shape
    shape = (rows, regions, regions)
    if relations.shape not in (shape, (rows // every, regions, regions)):
        raise InputError(f"{path} has the shape {relations.shape}; expected {shape}")
    return relations


def _read_boxes(folder: Path, split: str, features: FeatureFile, every: int) -> Tensor | None:
    path = folder / f"{split}_boxes.npy"
    if not path.exists():
        return _noted_boxes(folder, split, features)
    boxes = _read_array(path, (*features.shape[:-1], 4), every)
    sizes_path = folder / f"{split}_img_sizes.npy"
    if sizes_path.exists():
        sizes = _read_array(sizes_path, (len(features), 2), every).repeat(1, 2)
        if features.starts is None:
            boxes /= sizes[:, None, :]
        else:
            boxes /= sizes.repeat_interleave(torch.from_numpy(np.diff(features.starts)), dim=0)
    outside = ~((boxes >= -1e-3) & (boxes <= 1 + 1e-3)).flatten(1).all(1)
    if bool(outside.any()):
        of = f"divided by {sizes_path.name}" if sizes_path.exists() else "as they are"
        raise InputError(
            f"{path} goes from {boxes.min():g} to {boxes.max():g} ({of}); expected [0, 1], "
            f"but not so in row {int(outside.long().argmax())}: boxes in pixels need "
            f"{sizes_path.name} with (width, height) of every image"
        )
    turned = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    if bool(turned.any()):
        place = tuple(turned.nonzero()[0].tolist())
        raise InputError(
            f"{path} has a box with x2 < x1 or y2 < y1, {boxes[place].tolist()} in row "
            f"{place[0]}; expected x1, y1, x2, y2"
        )
    return boxes.clamp(0, 1)


def _read_array(path: Path, shape: tuple[int, ...], every: int) -> Tensor:
    array = open_array(path)
    if array.dtype.kind not in "fiu":
        raise InputError(f"{path} holds {array.dtype}; expected numbers")
    if array.shape not in (shape, (shape[0] // every, *shape[1:])):
        raise InputError(f"{path} has the shape {array.shape}; expected {shape}")
    step = every if array.shape == shape else 1
    return torch.from_numpy(np.array(array[::step], dtype=np.float32))


def _noted_boxes(folder: Path, split: str, features: FeatureFile) -> Tensor | None:
    """The boxes ``(1, N, 4)`` of the grid noted beside features; None where they have no grid."""
    grid = read_grid(folder / f"{split}_features.json")
    if grid is None or features.regions is None or grid[0] * grid[1] != features.shape[1]:
        return None
    return grid_boxes(*grid)[None]
