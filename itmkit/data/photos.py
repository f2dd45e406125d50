"""Photos as images, in a folder or inside files, and the options of every dataset of photos."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Self

from PIL import Image
from torch import Tensor

from itmkit.checks import InputError, check_count, check_unused, did_you_mean
from itmkit.data.captions import Captions, plain_name
from itmkit.data.dataset import CaptionedImages
from itmkit.data.images import BadSampleError, ImageSource
from itmkit.data.photo import (
    check_inside,
    check_max_pixels,
    decode_photo,
    find_photo,
    read_photo,
)
from itmkit.data.picture_files import PictureFile, open_pictures
from itmkit.data.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    check_augmentation,
)
from itmkit.data.stored_features import extracted_features
from itmkit.files import check_folder, file_state, user_path


class Photos(ImageSource):
    """Photos, decoded and cut to a square; they leave a worker process as bytes.

    A subclass says where a photo is, and decodes it.

    Args:
        split: name of the split, for errors.
        names: of the photos.
        preprocessing: how they become pixels.
        augment: whether they are cropped at random instead, but in an evaluation.
        crop_scale: smallest and largest share of the photo that a random crop covers.
        flip: probability of a random crop to be mirrored.
        max_pixels: most pixels of a photo, before and after scaling; larger ones are not decoded.

    Raises:
        InputError: if a number is out of its range.
    """

    def __init__(
        self,
        split: str,
        names: Sequence[str],
        *,
        preprocessing: Preprocessing | None = None,
        augment: bool = False,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        flip: float = 0.0,
        max_pixels: int = 100_000_000,
    ) -> None:
        self.preprocessing: Preprocessing = preprocessing or Preprocessing()
        check_augmentation(crop_scale, flip)
        check_max_pixels(max_pixels, self.preprocessing.scaled_side)
        self.split, self.names, self.max_pixels = split, names, max_pixels
        self.augments = self.train_augments = augment
        self.crop_scale, self.flip = crop_scale, flip

    @abstractmethod
    def photo(self, row: int) -> Image.Image:
        """A photo, upright and in RGB; a large JPEG decoded smaller, as far as the pixels need it.

        Raises:
            BadSampleError: if it is gone, not readable or has too many pixels.
        """

    @abstractmethod
    def place(self, row: int) -> Path:
        """Where a photo is: its path, or that of the file it is in, with its name."""

    @abstractmethod
    def state(self, row: int) -> str:
        """What changes when a photo does.

        Raises:
            BadSampleError: if it is gone.
        """

    def serving(self, *, training: bool) -> Self:
        own = super().serving(training=training)
        own.augments = self.train_augments and training
        return own

    def image(self, row: int) -> Tensor:
        """Pixels ``(3, size, size)`` in bytes.

        Raises:
            BadSampleError: if the photo is gone, not readable or has too many pixels.
        """
        photo = self.photo(row)
        if self.augments:
            return self.preprocessing.augmented(photo, scale=self.crop_scale, flip=self.flip)
        return self.preprocessing(photo)


class PhotoFolder(Photos):
    """The photos of a folder.

    Args:
        split: name of the split, for errors.
        names: of the photos, with the folders inside ``folder``.
        folder: where they are.
        follow_links: whether a link inside ``folder`` may lead out of it.
        check_images: whether a missing photo is an error at once, and not only when it is read.
        **options: see :class:`Photos`.

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
        follow_links: bool = False,
        check_images: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(split, names, **options)
        self.folder = user_path(folder)
        check_folder("folder", self.folder)
        self.follow_links = follow_links
        if check_images:
            self._check_images()

    def photo(self, row: int) -> Image.Image:
        path = self.place(row)
        if not self.follow_links:
            check_inside(path, self.folder)
        return read_photo(path, side=self.preprocessing.scaled_side, max_pixels=self.max_pixels)

    def place(self, row: int) -> Path:
        return find_photo(self.folder, self.names[row])

    def state(self, row: int) -> str:
        path = self.place(row)
        if not path.is_file():
            raise BadSampleError(f"{path} is missing, or not a file")
        return file_state(path)

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


class PackedPhotos(Photos):
    """Photos inside files: tar, Parquet, or a dataset of the library ``datasets``.

    Args:
        split: name of the split, for errors.
        names: of the photos, as ``pictures`` has them.
        pictures: the files.
        check_images: whether a missing photo is an error at once, and not only when it is read.
        **options: see :class:`Photos`.

    Raises:
        InputError: if a number is out of its range, or a photo is missing.

    Example:
        >>> PackedPhotos("val", ["a.jpg"], open_pictures("photos.tar", "val"))
        Traceback (most recent call last):
        FileNotFoundError: photos.tar is missing
    """

    def __init__(
        self,
        split: str,
        names: Sequence[str],
        pictures: PictureFile,
        *,
        check_images: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(split, names, **options)
        self.pictures = pictures
        found = {plain_name(name): row for row, name in enumerate(pictures.names)}
        self._rows = [found.get(plain_name(name)) for name in names]
        missing = [name for name, row in zip(names, self._rows, strict=True) if row is None]
        if missing and check_images:
            raise InputError(
                f"{pictures.path} lacks {missing[0]!r}, in all {len(missing)} of the {len(names)} "
                f"images of the split {split!r}{did_you_mean(missing[0], pictures.names)}"
            )

    def photo(self, row: int) -> Image.Image:
        inside = self._row(row)
        file, side = BytesIO(self.pictures.read(inside)), self.preprocessing.scaled_side
        return decode_photo(file, str(self.place(row)), side=side, max_pixels=self.max_pixels)

    def place(self, row: int) -> Path:
        return self.pictures.path / self.names[row]

    def state(self, row: int) -> str:
        return self.pictures.state(self._row(row))

    def _row(self, row: int) -> int:
        inside = self._rows[row]
        if inside is None:
            raise BadSampleError(f"{self.pictures.path} lacks {self.names[row]!r}")
        return inside


def open_photos(
    split: str,
    names: Sequence[str],
    photos: str | Path | PictureFile,
    *,
    follow_links: bool = False,
    **options: Any,
) -> Photos:
    """Photos of a folder, or inside the files that :func:`open_pictures` finds.

    Args:
        split: name of the split.
        names: of the photos.
        photos: where they are.
        follow_links: whether a link inside a folder may lead out of it.
        **options: see :class:`Photos`, and ``check_images`` of its subclasses.
    """
    pictures = photos if isinstance(photos, PictureFile) else open_pictures(photos, split)
    if pictures is not None:
        return PackedPhotos(split, names, pictures, **options)
    assert not isinstance(photos, PictureFile)
    return PhotoFolder(split, names, photos, follow_links=follow_links, **options)


_OF_PIXELS = ["image_size", "mean", "std", "preprocessing", "crop_scale", "flip", "max_pixels"]
_OF_PIXELS += ["check_images"]


class PhotoDataset(CaptionedImages):
    """Captions of photos, or of the features that ``itmkit extract`` made of them.

    Args:
        captions: of a split; the names of its images are those of the photos.
        photos: folder of the photos, or what :func:`open_pictures` opens.
        features: folder with the extracted features of the split, used instead of the photos;
            options of pixels and crops are then refused.
        image_size: side of the square image in pixels.
        mean: of the three channels, subtracted from pixels in [0, 1].
        std: of the three channels, divided by.
        preprocessing: all of this and more in one, instead of ``image_size``, ``mean`` and ``std``.
        train_augment: whether photos are cropped at random, in the split ``"train"`` and in that
            which :class:`ImageTextData` trains on. Otherwise, and in every evaluation, the shorter
            side is scaled to ``image_size`` and the middle cut out. Of ``features``, whether
            training draws one of the views that ``itmkit extract --views`` stored.
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
        photos: str | Path | PictureFile | None,
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
        given = locals()
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
            links = [] if photos is not None else ["follow_links"]  # there, names may be found
            check_unused(PhotoDataset, given, [*_OF_PIXELS, *links], "with features")
            images = extracted_features(
                captions.split, captions.names, features, views=train_augment
            )
        elif photos is not None:
            images = open_photos(
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
            images.train_augments = train_augment
        else:
            raise InputError("photos and features are both None; expected one of them")
        super().__init__(captions, images)
