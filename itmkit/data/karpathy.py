"""Photos and captions as in Karpathy's ``dataset_*.json``."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from itmkit.checks import InputError, check_count, did_you_mean
from itmkit.data.batch import Images
from itmkit.data.dataset import ImageTextDataset, Regions
from itmkit.data.feature_file import (
    FeatureFile,
    check_unique,
    grid_boxes,
    open_split,
    read_grid,
    read_names,
    read_preprocessing,
)
from itmkit.data.photo import check_inside, check_name, find_photo, photo_names, read_photo
from itmkit.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    check_augmentation,
)
from itmkit.files import check_folder, read_json, user_path

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold it, UTF-8 cannot


class KarpathyDataset(ImageTextDataset):
    """One split of a ``dataset_*.json`` (Flickr8k, Flickr30K, COCO) and its folder of photos.

    Serves pixels, or with ``features`` what ``itmkit extract`` made of them.

    Args:
        split: ``"train"``, ``"val"``, ``"test"``, or another split of the JSON file.
        annotations: the JSON file; where None, all photos in ``images`` and the folders inside it
            are the split, in the order of their names, without captions.
        images: folder of the photos; COCO's ``filepath`` is a folder inside it.
        features: folder with the extracted features of the split, used instead of the photos.
        image_size: side of the square image in pixels.
        mean: of the three channels, subtracted from pixels in [0, 1].
        std: of the three channels, divided by.
        preprocessing: all of this and more in one, instead of ``image_size``, ``mean`` and ``std``.
        train_augment: whether photos of the split ``"train"`` are cropped at random. Otherwise
            the shorter side is scaled to ``image_size`` and the middle cut out.
        crop_scale: smallest and largest share of the photo that a random crop covers.
        flip: probability of a random crop to be mirrored; captions say left and right, so 0.
        use_restval: whether COCO's ``"restval"`` belongs to ``"train"``.
        max_captions: captions of a photo that are used, the first ones, as usual where COCO has
            six or seven; all where None.
        max_pixels: most pixels of a photo, before and after scaling; larger ones are not decoded.
        follow_links: whether a link inside ``images`` may lead out of it.
        check_images: whether a missing photo is an error at once, and not only when it is read.
        require_captions: whether a split without any caption is an error; photos without captions
            can be encoded, and their features extracted.

    Raises:
        FileNotFoundError: if the JSON file, a folder or a photo is missing.
        InputError: if a number is out of its range, a file is of the wrong form, names a photo
            twice or one outside ``images``, or the split is empty.
    """

    def __init__(
        self,
        split: str,
        annotations: str | Path | None,
        images: str | Path | None = None,
        *,
        features: str | Path | None = None,
        image_size: int = 224,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        preprocessing: Preprocessing | None = None,
        train_augment: bool = True,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        flip: float = 0.0,
        use_restval: bool = True,
        max_captions: int | None = 5,
        max_pixels: int = 100_000_000,
        follow_links: bool = False,
        check_images: bool = True,
        require_captions: bool = True,
    ) -> None:
        if images is None and features is None:
            raise InputError("images and features are both None; expected one of them")
        check_count(image_size=image_size)
        own = Preprocessing(image_size, mean=mean, std=std)
        if preprocessing is not None and own not in (Preprocessing(), preprocessing):
            raise InputError(
                "preprocessing is given, and image_size, mean or std too; expected one of them"
            )
        used = self._of_photos = preprocessing or own
        self.preprocessing = used
        check_augmentation(crop_scale, flip)
        if max_captions is not None and max_captions < 1:
            raise InputError(f"max_captions is {max_captions}; expected 1 or more, or None")
        side = used.scaled_side
        if max_pixels < side**2:
            raise InputError(
                f"max_pixels is {max_pixels}; expected {side**2} or more, the square of the side "
                "that photos are scaled to"
            )
        if annotations is not None:
            splits = {split, "restval"} if split == "train" and use_restval else {split}
            path = user_path(annotations)
            names, captions, rows = _read_split(path, splits, max_captions, require_captions)
            super().__init__(split, names, captions or None, rows)
        elif images is not None:
            super().__init__(split, photo_names(user_path(images), follow_links), None)
        else:
            raise InputError("annotations and images are both None; expected one of them")
        self.image_size = used.size
        self._features: FeatureFile | None = None
        augment = features is None and train_augment and split == "train"
        self.augments = augment
        if features is not None:
            self._open_features(user_path(features))
            return
        assert images is not None
        self.folder = user_path(images)
        check_folder("images", self.folder)
        self.max_pixels = max_pixels
        self.follow_links = follow_links
        if check_images:
            self._check_images()
        self._crop_scale, self._flip = crop_scale, flip
        self._in_bytes = False

    def image(self, row: int) -> Tensor | Regions:
        """Pixels ``(3, image_size, image_size)``, or the extracted features.

        Raises:
            BadSampleError: if the photo is gone, not readable or has too many pixels, or its
                features are not finite.
            InputError: if the photo has become a link that leads out of the folder, or the file
                of features another one.
        """
        if self._features is not None:
            return Regions(self._features.read([self._feature_rows[row]])[0], self._boxes)
        path = find_photo(self.folder, self.names[row])
        if not self.follow_links:
            check_inside(path, self.folder)
        own = self._of_photos
        photo = read_photo(path, side=own.scaled_side, max_pixels=self.max_pixels)
        if self.augments:
            pixels = own.augmented(photo, scale=self._crop_scale, flip=self._flip)
        else:
            pixels = own(photo)
        return pixels if self._in_bytes else own.normalise(pixels)

    def read_images(self, rows: Sequence[int]) -> Images:
        """As :meth:`image`, for several rows, which is faster for extracted features."""
        if self._features is None:
            return super().read_images(rows)
        features = self._features.read([self._feature_rows[row] for row in rows])
        boxes = None if self._boxes is None else self._boxes.repeat(len(rows), 1, 1)
        return Images(features, boxes=boxes)

    def in_bytes(self) -> ImageTextDataset:
        """The same photos before :meth:`normalise`; itself for features, and where subclassed."""
        if self._features is not None or type(self) is not KarpathyDataset:
            return self
        other = copy(self)
        other._in_bytes = True
        return other

    def normalise(self, images: Images) -> Images:
        """Pixels in [0, 255] less the mean and divided by the standard deviation."""
        if images.features.dtype != torch.uint8:
            return images
        return replace(images, features=self._of_photos.normalise(images.features))

    def _check_images(self) -> None:
        there: dict[str, dict[str, os.DirEntry[str]]] = {}
        missing: list[Path] = []
        for name in self.names:
            path = find_photo(self.folder, name)
            folder, file = path.parent, path.name
            parent = str(folder)
            if parent not in there:
                if not self.follow_links:
                    check_inside(folder, self.folder)
                entries = os.scandir(folder) if folder.is_dir() else ()
                there[parent] = {entry.name: entry for entry in entries}
            entry = there[parent].get(file)
            link = entry is not None and entry.is_symlink()
            if link and not self.follow_links:
                check_inside(path, self.folder)
            if entry is None or not (path if link else entry).is_file():
                missing.append(path)
        if missing:
            first = missing[0].name
            others = [
                file
                for file in there[str(missing[0].parent)]
                if file.casefold() == first.casefold()
            ]
            raise FileNotFoundError(
                f"{missing[0]} is missing, one of {len(missing)} missing images of the split "
                f"{self.split!r}{did_you_mean(first, others)}"
            )

    def _open_features(self, folder: Path) -> None:
        check_folder("features", folder)
        self._features = open_split(folder, self.split)
        path = folder / f"{self.split}_ids.txt"
        found = [_plain(name) for name in read_names(path)]
        if len(found) != len(self._features):
            raise InputError(
                f"{path} has {len(found)} names; expected {len(self._features)}, one for every "
                f"row of {self._features.path.name}"
            )
        check_unique(found, path)
        stored = {name: row for row, name in enumerate(found)}
        missing = [name for name in self.names if _plain(name) not in stored]
        if missing:
            raise InputError(
                f"{path} lacks {missing[0]!r}, in all {len(missing)} of the {len(self)} images of "
                f"the split {self.split!r}"
            )
        self._feature_rows = [stored[_plain(name)] for name in self.names]
        notes = folder / f"{self.split}_features.json"
        self.preprocessing = read_preprocessing(notes)
        grid = read_grid(notes)
        fits = grid is not None and grid[0] * grid[1] == self._features.shape[1]
        self._boxes = grid_boxes(*grid) if grid is not None and fits else None


def _read_split(
    path: Path, splits: set[str], max_captions: int | None, require_captions: bool
) -> tuple[list[str], list[str], list[int]]:
    if not path.is_file():
        raise FileNotFoundError(f"annotations={str(path)!r} is not a file")
    content = read_json(path)
    where = ""
    names: list[str] = []
    groups: list[list[str]] = []
    try:
        entries = content["images"]
        for row, entry in enumerate(entries):
            where = f" in {repr(entry)[:80]}, images[{row}]"
            if entry["split"] in splits:
                names.append(_name(entry))
                sentences = entry["sentences"] if require_captions else entry.get("sentences", ())
                groups.append([_text(sentence) for sentence in sentences][:max_captions])
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not in Karpathy's form ({error!r}{where}); expected images[] with "
            "filename, split and sentences[]"
        ) from error
    wanted = " or ".join(sorted(splits, reverse=True))
    if not names:
        there = sorted({entry["split"] for entry in entries}, key=str)
        raise InputError(f"{path} has no image of the split {wanted!r}; it has {there}")
    if require_captions and not any(groups):
        raise InputError(f"{path} has no caption in the split {wanted!r}; expected one or more")
    for name in names:
        check_name(name, path)
    check_unique(names, path)
    captions = [caption for group in groups for caption in group]
    return names, captions, [row for row, group in enumerate(groups) for _ in group]


def _plain(name: str) -> str:
    """A name as names are compared: without white space around it, accents as one character."""
    return unicodedata.normalize("NFC", name.strip())


def _name(entry: dict[str, Any]) -> str:
    return str(PurePosixPath(entry.get("filepath", ""), entry["filename"]))


def _text(sentence: dict[str, Any]) -> str:
    text = sentence.get("raw") or " ".join(sentence["tokens"])
    return _LONE_SURROGATE.sub("\ufffd", " ".join(text.split()))
