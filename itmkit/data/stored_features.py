"""Features on disk as images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from itmkit.checks import InputError
from itmkit.data.batch import Images
from itmkit.data.captions import check_unique, plain_name
from itmkit.data.feature_file import (
    FeatureFile,
    grid_boxes,
    open_split,
    open_views,
    read_grid,
    read_names,
    read_preprocessing,
)
from itmkit.data.images import ImageSource, Regions
from itmkit.data.preprocessing import Preprocessing
from itmkit.files import check_folder, user_path


class StoredFeatures(ImageSource):
    """Region or grid features of images, read from a file row by row.

    Args:
        names: one an image.
        features: the file.
        rows: for every image its row in the file.
        boxes: ``(n, N, 4)`` of every image, or ``(1, N, 4)`` of all, relative corners; or None.
        relations: a file ``(n, N, N)``, an image a row; or one like ``features``, row by row.
        preprocessing: of the pixels that the features were made of, where known.
        views: further files like ``features``, of augmented views of the same images: training
            reads one of all, drawn by the seed of the image; else ``features`` is read.
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
        views: Sequence[FeatureFile] = (),
    ) -> None:
        self.names, self.features, self.rows = names, features, rows
        self.boxes = None if boxes is None else boxes.expand(len(names), -1, -1)
        self.relations, self.preprocessing = relations, preprocessing
        self.views, self.augments = [features, *views], bool(views)

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
        boxes = None if self.boxes is None else self.boxes[list(rows), : features.shape[1]]
        return Images(features, boxes=boxes, relations=self._read_relations(rows))

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
        own = list(rows) if len(file) == len(self) else [self.rows[row] for row in rows]
        relations = file.read(own)[..., : self.features.max_regions]
        outside = ((relations < -1e-3) | (relations > 1 + 1e-3)).flatten(1).any(1)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            low, high = relations[first].aminmax()
            raise InputError(
                f"{file.path} goes from {low:g} to {high:g} in row {own[first]}; expected [0, 1]"
            )
        return relations.clamp(0, 1)


def extracted_features(
    split: str, names: Sequence[str], folder: str | Path, *, views: bool = True
) -> StoredFeatures:
    """What ``itmkit extract`` wrote of some images, found by their names.

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
    return StoredFeatures(
        names,
        features,
        [stored[plain_name(name)] for name in names],
        boxes=noted_boxes(folder, split, features),
        views=open_views(folder, split, features) if views else (),
        preprocessing=read_preprocessing(folder / f"{split}_features.json"),
    )


def noted_boxes(folder: Path, split: str, features: FeatureFile) -> Tensor | None:
    """The boxes ``(1, N, 4)`` of the grid noted beside features; None where they have no grid."""
    grid = read_grid(folder / f"{split}_features.json")
    if grid is None or grid[0] * grid[1] != features.shape[1]:
        return None
    return grid_boxes(*grid)[None]
