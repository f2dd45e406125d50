"""Which files hold the pictures of a split."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from itmkit.checks import InputError
from itmkit.data.captions import split_names
from itmkit.data.photo import SUFFIXES

#: Endings of files that hold pictures.
ENDINGS = (".tar", ".parquet", ".arrow")

_SPLITS = ("train", "val", "validation", "valid", "dev", "test")


class Found(NamedTuple):
    """Files that hold pictures of a split."""

    paths: list[Path]
    of_split: bool
    place: Path  # what stands for all of them, in errors


def find_files(photos: Path, split: str) -> Found | None:
    """Files that hold the pictures of a split; None for a folder of photos or nothing."""
    called = split_names(split)
    if "{split}" in str(photos):
        for name in called:
            own = Path(str(photos).replace("{split}", name))
            if own.is_dir():
                found = find_files(own, split)
                return found and found._replace(of_split=True)
            if paths := sorted(own.parent.glob(own.name)):
                return Found(paths, True, paths[0] if len(paths) == 1 else own)
        raise FileNotFoundError(f"{photos} has no file of the split {split!r}")
    if photos.is_dir():
        return _find_in_folder(photos, split)
    if any(mark in photos.name for mark in "*?["):
        paths = sorted(photos.parent.glob(photos.name))
        if paths:
            return Found(paths, False, photos)
    packed = photos.suffix.lower() in ENDINGS
    if not photos.exists():
        if packed:
            raise FileNotFoundError(f"{photos} is missing")
        return None
    if not packed:
        hint = ""
        if ".tar." in photos.name or photos.suffix == ".tgz":
            hint = (
                ": photos of a compressed tar file cannot be read in any order, unpack it to .tar"
            )
        raise InputError(f"{photos} is neither a folder nor one of {', '.join(ENDINGS)}{hint}")
    return Found([photos], False, photos)


def _find_in_folder(folder: Path, split: str) -> Found | None:
    there = {entry.name: entry for entry in os.scandir(folder) if not entry.name.startswith(".")}
    if "dataset_dict.json" in there:
        own = next((folder / name for name in split_names(split) if name in there), None)
        if own is None:
            splits = ", ".join(sorted(name for name, entry in there.items() if entry.is_dir()))
            raise FileNotFoundError(f"{folder} has no split {split!r}; expected one of {splits}")
        return Found([own], True, own)
    if {"dataset_info.json", "state.json"} <= there.keys():
        return Found([folder], False, folder)
    files = [
        folder / name
        for name in sorted(there)
        if Path(name).suffix in ENDINGS and Path(name).stem != "metadata"
    ]
    photos = (Path(name).suffix.lower() in SUFFIXES for name in there)
    if not files or any(photos) or any(entry.is_dir() for entry in there.values()):
        return None
    if not any(_starts_with(path, _SPLITS) for path in files):
        return Found(files, False, folder)
    own_files = [path for path in files if _starts_with(path, split_names(split))]
    if not own_files:
        names = ", ".join(path.name for path in files)
        raise FileNotFoundError(
            f"{folder} has no file of the split {split!r}, such as "
            f"{split}{files[0].suffix}; it has {names[:200]}"
        )
    return Found(own_files, True, folder if len(own_files) > 1 else own_files[0])


def _starts_with(path: Path, names: Sequence[str]) -> bool:
    return any(path.name.startswith(name) and not path.name[len(name)].isalnum() for name in names)
