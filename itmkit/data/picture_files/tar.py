"""Pictures of a tar file, as webdataset has them."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from itmkit.checks import InputError
from itmkit.data.captions import check_name
from itmkit.data.photo import SUFFIXES
from itmkit.data.picture_files.base import NAME_COLUMN
from itmkit.data.picture_files.index import Index, Place, cached_places, write_places

_READING = "2"  # changes when texts are read otherwise


def index_tar(path: Path) -> Index:
    """The pictures of a tar file, and what the files of their keys say."""
    _, places, beside = cached_places(path, partial(_find_pictures, path), of=_READING)
    keys = dict.fromkeys(key for row in beside for key in row)
    columns = {key: [row.get(key) for row in beside] for key in keys}
    return Index(path, places, columns, [f"file {place.name}" for place in places])


def _find_pictures(path: Path, folder: Path) -> None:
    pictures: dict[str, Place] = {}
    keys: dict[str, str] = {}  # of every picture
    beside: dict[str, dict[str, Any]] = {}  # of every key
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = str(PurePosixPath(member.name))
                file = PurePosixPath(name)
                if not member.isfile() or file.name.startswith("."):
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{name} is cut short")
                check_name(name, path)
                key, _, ending = name.rpartition("/")[2].partition(".")
                key = str(file.with_name(key or file.name))
                if file.suffix.lower() in SUFFIXES:
                    if name in pictures:
                        raise InputError(f"{path} has the file {name!r} twice; expected it once")
                    pictures[name] = Place(name, member.offset_data, member.size, None)
                    keys[name] = key
                elif ending in ("txt", "caption", "json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    found = _beside(content.read(), ending, f"{path}, file {name}")
                    beside[key] = {**beside.get(key, {}), **found}
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{path} is not a whole tar file: {error}") from error
    if not pictures:
        raise InputError(f"{path} has no picture; expected files that end in {' '.join(SUFFIXES)}")
    owners = Counter(keys.values())
    for name, key in keys.items():
        if owners[key] > 1 and key in beside:
            raise InputError(
                f"{path} has {owners[key]} pictures of the key {key!r}, such as {name!r}; "
                "expected one, where there is a text of the key"
            )
    write_places(folder, list(pictures.values()), [beside.get(keys[name], {}) for name in pictures])


def _beside(content: bytes, ending: str, source: str) -> dict[str, Any]:
    """What a ``.txt`` or ``.json`` beside a picture says, as columns of its row."""
    try:
        text = content.decode("utf-8-sig")
        if ending != "json":
            # not str.splitlines: a caption may contain rarer separators
            return {"caption": [line for line in text.split("\n") if line.strip()]}
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if ending == "json" else "text in UTF-8"
        raise InputError(f"{source} is not {kind}: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{source} is {text[:40]!r}; expected an object {{…}}")
    return {key: value for key, value in found.items() if key != NAME_COLUMN}
