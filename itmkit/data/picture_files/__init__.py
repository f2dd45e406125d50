"""Pictures inside files, by row: tar, Parquet, and datasets of the library ``datasets``."""

from __future__ import annotations

from pathlib import Path

from itmkit.data.picture_files.base import PictureFile
from itmkit.data.picture_files.datasets import DatasetPictures
from itmkit.data.picture_files.find import find_files
from itmkit.data.picture_files.packed import PackedPictures
from itmkit.files import user_path

__all__ = ["DatasetPictures", "PackedPictures", "PictureFile", "open_pictures"]


def open_pictures(
    photos: str | Path, split: str, *, column: str | None = None
) -> PictureFile | None:
    """Open files that hold pictures; None for a folder of photos.

    ===============================  ==============================================================
    ``photos.tar``                   files ``KEY.jpg``, with captions in ``KEY.txt`` (a line each)
                                     or in the fields of ``KEY.json``, as webdataset has it
    ``photos.parquet``               a column of pictures: of ``{bytes, path}``, as Hugging Face
                                     writes it, or of bytes
    a folder of ``save_to_disk``     of the library ``datasets``, of one split or of several; or
                                     one of its ``.arrow`` files
    a folder of such files           those whose name starts with that of the split, such as
                                     ``train-00000-of-00002.parquet``, or all
    ``data/{split}-*.parquet``       files by a pattern
    ===============================  ==============================================================

    A tar file is indexed once, and the pictures of a Parquet file are unpacked once, which takes
    as much room again: both in the cache, ``itmkit`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Args:
        photos: path of the file, folder or files.
        split: name of the split; ``val`` is also found as ``validation``, ``valid`` or ``dev``.
        column: of the pictures; None: the only one, or ``image`` or ``picture``.

    Raises:
        FileNotFoundError: if there is nothing of that name, or no file of the split.
        InputError: if a file is not whole or holds no pictures, one has no name or one that
            another picture has.
    """
    found = find_files(user_path(photos), split)
    if found is None:
        return None
    paths, of_split, place = found
    if any(path.is_dir() or path.suffix == ".arrow" for path in paths):
        pictures: PictureFile = DatasetPictures.from_disk(paths, split, column=column, path=place)
    else:
        pictures = PackedPictures(paths, column=column, path=place)
    pictures.of_split = pictures.of_split or of_split
    return pictures
