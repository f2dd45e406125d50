"""A folder of photos and a table of their captions."""

from __future__ import annotations

import ast
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from itmkit.checks import InputError, check_count, check_optional_count
from itmkit.data.captions import Captions, check_name, clean_sentence, split_names
from itmkit.data.photos import PhotoDataset
from itmkit.data.picture_files import PictureFile, open_pictures
from itmkit.data.split_shares import DEFAULT_SHARES, kept_splits
from itmkit.data.table import ENDINGS, FILE_COLUMNS, Table, read_table
from itmkit.files import check_folder, user_path

CAPTION_COLUMNS = ("caption", "text", "captions")
SPLIT_COLUMNS = ("split",)


class CaptionedFolder(PhotoDataset):
    """One split of a folder of photos, with captions from a table.

    The table is CSV (in UTF-8, with a row of names), TSV, JSONL or Parquet. A row has the path of a
    photo inside the folder, and a caption or a list of them; a photo may be in several rows.
    ``photos`` may also be a tar or Parquet file with pictures inside, or a dataset that the library
    ``datasets`` saved, see :func:`open_pictures`; captions are then read from it too.

    ==============================  ===============================================================
    ``captions="captions.csv"``     one table. Its column ``split`` says which split a photo is in;
                                    without one, every photo is drawn into a split
    ``captions="{split}.csv"``      a table for every split
    ``captions="folder"``           the same: ``train.csv``, ``val.csv`` … in a folder
    ``captions=None``               what stands beside the pictures inside ``photos``; or, of a
                                    folder, ``metadata.csv`` (or ``.jsonl``, ``.parquet``) beside
                                    the photos, or in a folder for every split, as Hugging Face's
                                    ``imagefolder`` has it
    ==============================  ===============================================================

    A split is also found as ``validation``, ``valid`` or ``dev`` where it is called ``val``.

    Splits that are drawn follow from the names of the photos, ``split_seed`` and ``shares`` alone.
    They are written beside the table (``captions.splits.json``), where that is possible: photos
    that are added later then leave the others in their splits, and go where these lack most to
    their shares.

    Args:
        split: ``"train"``, ``"val"``, ``"test"``, or another one of the table or of ``shares``.
        photos: folder of the photos, or files that hold them. May be None with ``features`` and
            ``captions``.
        captions: the table, as above.
        file_column: column with the path of the photo; None: ``file_name``, ``filename``, ``image``
            or ``path``. Where captions are read from ``photos``, the column of pictures.
        caption_column: column with the caption, or with a list of captions; None: ``caption``,
            ``text`` or ``captions``.
        split_column: column with the split; None: ``split``, where there is one.
        delimiter: between the cells of CSV; None: a tab in ``.tsv`` and a comma in other files.
        shares: draws the splits, with these shares, whatever columns there are; None: where no
            column tells the split, with 0.8 for train, 0.1 for val and 0.1 for test.
        split_seed: of the draw.
        max_captions: captions of a photo that are used, the first ones; all where None.
        **photo_options: see :class:`PhotoDataset`: ``features``, ``image_size``, ``mean``, ``std``,
            ``train_augment`` and others.

    Raises:
        FileNotFoundError: if the table, the folder or a photo is missing.
        InputError: if a column is missing, a row has no caption or names a file outside the folder,
            a photo is in two splits, or the split has no photos.
    """

    def __init__(
        self,
        split: str,
        photos: str | Path | None,
        captions: str | Path | None = None,
        *,
        file_column: str | None = None,
        caption_column: str | None = None,
        split_column: str | None = None,
        delimiter: str | None = None,
        shares: Mapping[str, float] | None = None,
        split_seed: int = 0,
        max_captions: int | None = None,
        **photo_options: Any,
    ) -> None:
        reads_photos = photo_options.get("features") is None
        if photos is None and (reads_photos or captions is None):
            raise InputError("photos is None; expected a folder, or features and captions")
        images: Path | PictureFile | None = None if photos is None else user_path(photos)
        if isinstance(images, Path) and (captions is None or reads_photos):
            column = file_column if captions is None else None
            pictures = open_pictures(images, split, column=column)
            if pictures is None:
                check_folder("photos", images)
            images = pictures or images
        found = table_captions(
            split,
            images if captions is None and isinstance(images, PictureFile) else captions,
            photos=images if isinstance(images, Path) else None,
            file_column=file_column,
            caption_column=caption_column,
            split_column=split_column,
            delimiter=delimiter,
            shares=shares,
            split_seed=split_seed,
            max_captions=max_captions,
        )
        super().__init__(found, images, **photo_options)


def table_captions(
    split: str,
    captions: str | Path | PictureFile | None,
    *,
    photos: Path | None = None,
    file_column: str | None = None,
    caption_column: str | None = None,
    split_column: str | None = None,
    delimiter: str | None = None,
    shares: Mapping[str, float] | None = None,
    split_seed: int = 0,
    max_captions: int | None = None,
) -> Captions:
    """The captions of a split in a table; see :class:`CaptionedFolder`.

    Raises:
        FileNotFoundError: if there is no table.
        InputError: if it is not such a table, or the split has no images.
    """
    check_optional_count(max_captions=max_captions)
    check_count(0, split_seed=split_seed)
    if shares and split_column is not None:
        raise InputError(
            f"split_column is {split_column!r}, and shares are given; expected one of them"
        )
    if isinstance(captions, PictureFile):
        table, of_split, file_column = captions.table, captions.of_split, "file_name"
        path = table.path
    else:
        path, of_split = _find_table(split, captions, photos)
        table = read_table(path, delimiter=delimiter)
    by_option = table.find("split_column", split_column, SPLIT_COLUMNS)
    column = None if shares or (of_split and split_column is None) else by_option
    file = table.needed("file_column", file_column, FILE_COLUMNS)
    metadata = photos is not None and captions is None
    inside = path.parent.relative_to(photos) if photos and metadata else Path()
    names = _names(table, file, photos, inside)
    sentences = _sentences(table, table.needed("caption_column", caption_column, CAPTION_COLUMNS))
    images: dict[str, list[str]] = {}
    for name, own in zip(names, sentences, strict=True):
        images.setdefault(name, []).extend(own)
    if column is not None:
        splits = _splits(table, column, names)
    elif of_split and not shares:
        splits = dict.fromkeys(images, split)
    else:
        draw = path.with_name(f"{path.stem}.splits.json")
        splits = kept_splits(draw, list(images), shares or DEFAULT_SHARES, split_seed)
    called = next((s for s in split_names(split) if s in splits.values()), split)
    used = {name: own[:max_captions] for name, own in images.items() if splits[name] == called}
    if not used:
        there = ", ".join(map(repr, sorted(set(splits.values()))))
        raise InputError(f"{path} has no image of the split {split!r}; it has {there}")
    _warn_of_repeats(path, split, used)
    return Captions.of_images(split, used)


def _find_table(split: str, captions: str | Path | None, photos: Path | None) -> tuple[Path, bool]:
    """The table, and whether it is that of the split alone."""
    called = split_names(split)
    if captions is None:
        assert photos is not None
        folders = [*(photos / name for name in called), photos]
        for path in (folder / f"metadata{ending}" for folder in folders for ending in ENDINGS):
            if path.is_file():
                return path, path.parent != photos
        raise FileNotFoundError(
            f"photos={str(photos)!r} has no metadata.csv, .jsonl or .parquet; expected one, or "
            "captions=… with the path of a table"
        )
    path = user_path(captions)
    if "{split}" in str(captions):
        tables = [Path(str(path).replace("{split}", name)) for name in called]
    elif path.is_dir():
        tables = [path / f"{name}{ending}" for name in called for ending in ENDINGS]
    else:
        if not path.is_file():
            raise FileNotFoundError(f"captions={str(captions)!r} is not a file")
        return path, False
    found = next((table for table in tables if table.is_file()), None)
    if found is None:
        there = sorted(p.name for p in tables[0].parent.glob("*") if p.suffix in ENDINGS)
        raise FileNotFoundError(
            f"captions={str(captions)!r} has no table of the split {split!r}, such as "
            f"{tables[0].name}; {tables[0].parent} has {', '.join(there) or 'none'}"
        )
    return found, True


def _names(table: Table, column: str, photos: Path | None, inside: Path) -> list[str]:
    """The paths of the photos in their folder, where the table is relative to one ``inside``."""
    found: dict[str, str] = {}
    roots = () if photos is None else (photos, Path(os.path.abspath(photos)))
    for row, value in enumerate(table.columns[column]):
        if not isinstance(value, str) or not value.strip():
            raise InputError(
                f"{table.at(row)} has {repr(value)[:60]} in the column {column!r}; expected the "
                "path of a photo"
            )
        if value not in found:
            path = PurePosixPath(value.strip())
            own = [root for root in roots if path.is_absolute() and path.is_relative_to(root)]
            name = str(path.relative_to(own[0]) if own else inside / path)
            check_name(name, table.at(row))
            found[value] = name
    return [found[value] for value in table.columns[column]]


def _sentences(table: Table, column: str) -> list[list[str]]:
    found = []
    for row, value in enumerate(table.columns[column]):
        texts = value if isinstance(value, list) else _as_list(value)
        for text in texts or [None]:
            if not isinstance(text, str) or not text.strip():
                what = "an empty caption" if text in ("", None) else f"the caption {text!r}"
                raise InputError(
                    f"{table.at(row)} has {what[:60]} in the column {column!r}; expected a text"
                )
        found.append([clean_sentence(text) for text in texts])
    return found


def _as_list(value: Any) -> list[Any]:
    """The captions of a cell: a list as JSON or as Python writes it, or the one that it is."""
    if isinstance(value, str) and value.startswith("[") and value.endswith("]"):
        for read in (json.loads, ast.literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                found = read(value)
                if isinstance(found, list) and all(isinstance(text, str) for text in found):
                    return found
    return [value]


def _splits(table: Table, column: str, names: Sequence[str]) -> dict[str, str]:
    splits: dict[str, str] = {}
    for row, (name, value) in enumerate(zip(names, table.columns[column], strict=True)):
        if not isinstance(value, str) or not value.strip():
            raise InputError(
                f"{table.at(row)} has {value!r} in the column {column!r}; expected the name of a "
                "split"
            )
        split = splits.setdefault(name, value.strip())
        if split != value.strip():
            raise InputError(
                f"{table.at(row)} has {name!r} in the split {value.strip()!r}, a line before has "
                f"it in {split!r}; expected each image in one split"
            )
    return splits


def _warn_of_repeats(path: Path, split: str, images: Mapping[str, Sequence[str]]) -> None:
    repeated = [
        (name, text)
        for name, own in images.items()
        for text, times in Counter(own).items()
        if times > 1
    ]
    if repeated:
        from lightning.pytorch.utilities import rank_zero_warn

        name, text = repeated[0]
        rank_zero_warn(
            f"{path} has {len(repeated)} captions more than once for the same image of the split "
            f"{split!r}, such as {text[:60]!r} of {name!r}: each counts as often as it is there"
        )
