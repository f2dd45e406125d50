"""Photos and captions as in Karpathy's ``dataset_*.json``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor

from itmkit.data.dataset import ImageTextDataset, Regions
from itmkit.data.feature_file import FeatureFile, grid_boxes, read_grid, read_lines

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class KarpathyDataset(ImageTextDataset):
    """One split of a ``dataset_*.json`` (Flickr8k, Flickr30K, COCO) and its folder of photos.

    Serves pixels, or with ``features`` what ``itmkit extract`` made of them.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``.
        annotations: the JSON file.
        images: folder of the photos; COCO's ``filepath`` is a folder inside it.
        features: folder with the extracted features of the split, used instead of the photos.
        image_size: side of the square image in pixels.
        mean: of the three channels, subtracted from pixels in [0, 1].
        std: of the three channels, divided by.
        train_augment: whether photos of the split ``"train"`` are cropped at random. Otherwise
            the shorter side is scaled to ``image_size`` and the middle cut out.
        crop_scale: smallest and largest share of the photo that a random crop covers.
        flip: probability of a random crop to be mirrored; captions say left and right, so 0.
        use_restval: whether COCO's ``"restval"`` belongs to ``"train"``.
        max_captions: captions of a photo that are used, the first ones, as usual where COCO has
            six or seven; all where None.

    Raises:
        FileNotFoundError: if the JSON file, a folder or a photo is missing.
        ValueError: if a file is of the wrong form, or the split empty.
    """

    def __init__(
        self,
        split: str,
        annotations: str | Path,
        images: str | Path | None = None,
        *,
        features: str | Path | None = None,
        image_size: int = 224,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        train_augment: bool = True,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        flip: float = 0.0,
        use_restval: bool = True,
        max_captions: int | None = 5,
    ) -> None:
        if images is None and features is None:
            raise ValueError("images and features are both None; expected one of them")
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}; expected 1 or more")
        if max_captions is not None and max_captions < 1:
            raise ValueError(f"max_captions is {max_captions}; expected 1 or more, or None")
        splits = {split, "restval"} if split == "train" and use_restval else {split}
        path = Path(annotations)
        names, captions, caption_images = _read_split(path, splits, max_captions)
        super().__init__(split, names, captions, caption_images)
        self.image_size = image_size
        self._features: FeatureFile | None = None
        augment = features is None and train_augment and split == "train"
        self.augments = augment
        if features is not None:
            self._open_features(Path(features))
            return
        assert images is not None
        self.folder = Path(images)
        _check_images(self.folder, split, names)
        self._transform = _transform(image_size, mean, std, crop_scale if augment else None, flip)

    def image(self, row: int) -> Tensor | Regions:
        """Pixels ``(3, image_size, image_size)``, or the extracted features.

        Raises:
            ValueError: if the photo is not readable.
        """
        if self._features is not None:
            return Regions(self._features.read(self._feature_rows[row]), self._boxes)
        path = self.folder / self.names[row]
        try:
            with Image.open(path) as photo:
                # a JPEG is decoded at half, a quarter or an eighth, where that is large enough
                photo.draft("RGB", (2 * self.image_size, 2 * self.image_size))
                pixels = ImageOps.exif_transpose(photo).convert("RGB")
        except FileNotFoundError:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is not a readable image: {error}") from error
        return self._transform(pixels)

    def _open_features(self, folder: Path) -> None:
        self._features = FeatureFile(folder / f"{self.split}_ims.npy")
        path = folder / f"{self.split}_ids.txt"
        stored = {name: row for row, name in enumerate(read_lines(path))}
        if len(stored) != len(self._features):
            raise ValueError(
                f"{path} has {len(stored)} names; expected {len(self._features)}, one for every "
                f"row of {self._features.path.name}"
            )
        missing = [name for name in self.names if name not in stored]
        if missing:
            raise ValueError(
                f"{path} lacks {missing[0]!r}, in all {len(missing)} of the {len(self)} images of "
                f"the split {self.split!r}"
            )
        self._feature_rows = [stored[name] for name in self.names]
        grid = read_grid(folder / f"{self.split}_features.json")
        fits = grid is not None and grid[0] * grid[1] == self._features.shape[1]
        self._boxes = grid_boxes(*grid) if grid is not None and fits else None


def _read_split(
    path: Path, splits: set[str], max_captions: int | None
) -> tuple[list[str], list[str], list[int]]:
    if not path.is_file():
        raise FileNotFoundError(f"annotations={str(path)!r} is not a file")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["images"]
        found = [entry for entry in entries if entry["split"] in splits]
        names = [_name(entry) for entry in found]
        groups = [[_text(sentence) for sentence in entry["sentences"]] for entry in found]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not in Karpathy's form ({error!r}); expected images[] with filename, "
            "split and sentences[]"
        ) from error
    wanted = " or ".join(sorted(splits, reverse=True))
    if not found:
        there = sorted({entry["split"] for entry in entries})
        raise ValueError(f"{path} has no image of the split {wanted!r}; it has {there}")
    captions: list[str] = []
    rows: list[int] = []
    for row, group in enumerate(groups):
        captions += group[:max_captions]
        rows += [row] * len(group[:max_captions])
    if not captions:
        raise ValueError(f"{path} has no caption in the split {wanted!r}")
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{path} names {name!r}; expected a file inside the image folder")
    return names, captions, rows


def _name(entry: dict[str, Any]) -> str:
    return str(PurePosixPath(entry.get("filepath", ""), entry["filename"]))


def _text(sentence: dict[str, Any]) -> str:
    return " ".join((sentence.get("raw") or " ".join(sentence["tokens"])).split())


def _check_images(folder: Path, split: str, names: Iterable[str]) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"images={str(folder)!r} is not a folder")
    there: dict[str, set[str]] = {}
    missing: list[Path] = []
    for name in names:
        parent, file = os.path.split(name)
        if parent not in there:
            inner = folder / parent
            there[parent] = {e.name for e in os.scandir(inner)} if inner.is_dir() else set()
        if file not in there[parent]:
            missing.append(folder / name)
    if missing:
        raise FileNotFoundError(
            f"{missing[0]} is missing, one of {len(missing)} missing images of the split {split!r}"
        )


def _transform(
    size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    crop_scale: tuple[float, float] | None,
    flip: float,
) -> Any:
    from timm.data.transforms_factory import create_transform

    if crop_scale is None:
        return create_transform(
            (3, size, size), interpolation="bicubic", mean=mean, std=std, crop_pct=1.0
        )
    return create_transform(
        (3, size, size),
        is_training=True,
        scale=crop_scale,
        ratio=(3 / 4, 4 / 3),
        hflip=flip,
        color_jitter=0.0,
        interpolation="bicubic",
        mean=mean,
        std=std,
    )
