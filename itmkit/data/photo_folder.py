"""Photos of a folder as images, and the options that every dataset of photos has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from itmkit.checks import InputError, check_count
from itmkit.data.captions import Captions
from itmkit.data.dataset import CaptionedImages
from itmkit.data.images import ImageSource
from itmkit.data.photo import check_inside, find_photo, read_photo
from itmkit.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    check_augmentation,
)
from itmkit.data.stored_features import extracted_features
from itmkit.files import check_folder, user_path


class PhotoFolder(ImageSource):
    """Photos, decoded and cut to a square; they leave a worker process as bytes.

    Args:
        split: name of the split, for errors.
        names: of the photos, with the folders inside ``folder``.
        folder: where they are.
        preprocessing: how they become pixels.
        augment: whether they are cropped at random instead.
        crop_scale: smallest and largest share of the photo that a random crop covers.
        flip: probability of a random crop to be mirrored.
        max_pixels: most pixels of a photo, before and after scaling; larger ones are not decoded.
        follow_links: whether a link inside ``folder`` may lead out of it.
        check_images: whether a missing photo is an error at once, and not only when it is read.

    Raises:
        FileNotFoundError: if the folder or a photo is missing.
        InputError: if a number is out of its range, or a link leads out of the folder.
    """

    def __init__(
        self,
        split: str,
        names: Sequence[str],
        folder: str | Path,
        *,
        preprocessing: Preprocessing | None = None,
        augment: bool = False,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        flip: float = 0.0,
        max_pixels: int = 100_000_000,
        follow_links: bool = False,
        check_images: bool = True,
    ) -> None:
        self.preprocessing: Preprocessing = preprocessing or Preprocessing()
        check_augmentation(crop_scale, flip)
        side = self.preprocessing.scaled_side
        if max_pixels < side**2:
            raise InputError(
                f"max_pixels is {max_pixels}; expected {side**2} or more, the square of the side "
                "that photos are scaled to"
            )
        self.split, self.names, self.folder = split, names, user_path(folder)
        check_folder("folder", self.folder)
        self.max_pixels, self.follow_links = max_pixels, follow_links
        self.augments, self.crop_scale, self.flip = augment, crop_scale, flip
        if check_images:
            self._check_images()

    def image(self, row: int) -> Tensor:
        """Pixels ``(3, size, size)`` in bytes.

        Raises:
            BadSampleError: if the photo is gone, not readable or has too many pixels.
            InputError: if it has become a link that leads out of the folder.
        """
        path = find_photo(self.folder, self.names[row])
        if not self.follow_links:
            check_inside(path, self.folder)
        own = self.preprocessing
        photo = read_photo(path, side=own.scaled_side, max_pixels=self.max_pixels)
        if self.augments:
            return own.augmented(photo, scale=self.crop_scale, flip=self.flip)
        return own(photo)

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
            first = missing[0].name.casefold()  # of another case, or without its ending
            files = there[str(missing[0].parent)]
            close = [f for f in files if first in (f.casefold(), Path(f).stem.casefold())]
            raise FileNotFoundError(
                f"{missing[0]} is missing, one of {len(missing)} missing images of the split "
                f"{self.split!r}" + (f". Did you mean {close[0]!r}?" if close else "")
            )


class PhotoDataset(CaptionedImages):
    """Captions of photos, or of the features that ``itmkit extract`` made of them.

    Args:
        captions: of a split; the names of its images are those of the photos.
        photos: folder of the photos.
        features: folder with the extracted features of the split, used instead of the photos.
        image_size: side of the square image in pixels.
        mean: of the three channels, subtracted from pixels in [0, 1].
        std: of the three channels, divided by.
        preprocessing: all of this and more in one, instead of ``image_size``, ``mean`` and ``std``.
        train_augment: whether photos of the split ``"train"`` are cropped at random. Otherwise
            the shorter side is scaled to ``image_size`` and the middle cut out. Of ``features``,
            whether training draws one of the views that ``itmkit extract --views`` stored.
        crop_scale: smallest and largest share of the photo that a random crop covers.
        flip: probability of a random crop to be mirrored; captions say left and right, so 0.
        max_pixels: most pixels of a photo, before and after scaling; larger ones are not decoded.
        follow_links: whether a link inside the folder of photos may lead out of it.
        check_images: whether a missing photo is an error at once, and not only when it is read.

    Raises:
        FileNotFoundError: if a folder or a photo is missing.
        InputError: if a number is out of its range, or the features are not those of the photos.
    """

    def __init__(
        self,
        captions: Captions,
        photos: str | Path | None,
        *,
        features: str | Path | None = None,
        image_size: int = 224,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        preprocessing: Preprocessing | None = None,
        train_augment: bool = True,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        flip: float = 0.0,
        max_pixels: int = 100_000_000,
        follow_links: bool = False,
        check_images: bool = True,
    ) -> None:
        check_count(image_size=image_size)
        own = Preprocessing(image_size, mean=mean, std=std)
        if preprocessing is not None and own not in (Preprocessing(), preprocessing):
            raise InputError(
                "preprocessing is given, and image_size, mean or std too; expected one of them"
            )
        own = preprocessing or own
        self.image_size = own.size
        images: ImageSource
        if features is not None:
            images = extracted_features(
                captions.split, captions.names, features, views=train_augment
            )
        elif photos is not None:
            images = PhotoFolder(
                captions.split,
                captions.names,
                photos,
                preprocessing=own,
                augment=train_augment and captions.split == "train",
                crop_scale=crop_scale,
                flip=flip,
                max_pixels=max_pixels,
                follow_links=follow_links,
                check_images=check_images,
            )
        else:
            raise InputError("photos and features are both None; expected one of them")
        super().__init__(captions, images)
