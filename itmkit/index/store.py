"""How an index lies on disk, so that it is valid at any time, and one process writes at a time.

::

    photos.index/
      items.parquet       a row a picture; its metadata name the other files, so that replacing
                          this one file is what changes the index
      vector-0003.npy     a row a picture, memory-mapped; so for every field of the encodings
      calibration.json    from scores to probabilities, where there is one
      faiss.json          how the faiss index was built and what it finds, where there is one
      faiss-0001.index    the faiss index that it names
      manifest.json       the metadata again, for people
      partial/            what an update has encoded and not yet written into the index
      .lock
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from itmkit.checks import InputError
from itmkit.chunks import chunks
from itmkit.files import atomic_write, read_json, sole_writer, write_text

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1

_KEY = b"itmkit"
_AGAIN = "remove this index and make it again"
_BLOCK = 4096  # rows copied at a time

Array = np.ndarray[Any, Any]
Kind = TypeVar("Kind")


@dataclass
class Stored:
    """What an index folder holds.

    Args:
        folder: the index.
        manifest: format version, model, preprocessing, counts, files.
        items: a row a picture.
        fields: arrays by name, memory-mapped, a row a picture.
    """

    folder: Path
    manifest: dict[str, Any]
    items: pa.Table
    fields: dict[str, Array]


def exists(folder: Path) -> bool:
    """Whether there is an index in a folder."""
    return (folder / "items.parquet").is_file()


def read(folder: Path) -> Stored:
    """Open an index, also while another process puts a new one in its place.

    Raises:
        FileNotFoundError: if there is none.
        InputError: if it is of a newer version, cut short, or not an index.
    """
    while True:
        before = _file_id(folder)
        try:
            return _read(folder)
        except FileNotFoundError:
            if _file_id(folder) == before:
                raise


def _file_id(folder: Path) -> tuple[int, int] | None:
    """Of the file that names the others; another one for every state of the index."""
    try:
        found = (folder / "items.parquet").stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _read(folder: Path) -> Stored:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "items.parquet"
    if not path.is_file():
        unfinished = (folder / "partial").is_dir()
        why = "its making was stopped before the end; run it again" if unfinished else "no index"
        raise FileNotFoundError(f"{folder} has no items.parquet: {why}")
    try:
        # Opened once: under its name there may soon be another one. By Arrow, whose threads would
        # else drop a Python object while the interpreter ends, and abort the process.
        with pa.OSFile(str(path)) as file:
            items = pq.ParquetFile(file).read()
        manifest = json.loads(items.schema.metadata[_KEY])
        version = int(manifest["format_version"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not the table of an index: {error}; {_AGAIN}") from error
    if version > FORMAT_VERSION:
        raise InputError(
            f"{path} has the format version {version}; expected at most {FORMAT_VERSION}: this "
            "index was made by a newer itmkit"
        )
    fields = {name: _open(folder / file, len(items)) for name, file in manifest["fields"].items()}
    return Stored(folder, manifest, items, fields)


def _open(path: Path, rows: int) -> Array:
    try:
        # "c": pages are never written
        array: Array = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing: a part of the index; {_AGAIN}") from None
    except (ValueError, EOFError, OSError) as error:
        raise InputError(f"{path} is not readable, perhaps cut short: {error}; {_AGAIN}") from error
    if len(array) != rows:
        raise InputError(
            f"{path} has {len(array)} rows; expected {rows}, as items.parquet; {_AGAIN}"
        )
    return array


def write(
    folder: Path,
    manifest: Mapping[str, Any],
    items: pa.Table,
    sources: Mapping[str, list[Array]],
    places: Array,
    *,
    generation: int,
) -> None:
    """Write an index, or put it in the place of the one that is there.

    A kill leaves the old index or the new one. Readers of the old one go on with its files.

    Args:
        folder: of the index.
        manifest: what is written into the metadata; ``fields`` and the version are filled in.
        items: a row a picture.
        sources: for every field, arrays to take rows from, such as those of the old index.
        places: ``(n, 2)`` int64, for every picture the source and the row in it.
        generation: number of this state, which no other has had.
    """
    import pyarrow.parquet as pq

    files = {name: f"{name}-{generation:04d}.npy" for name in sources}
    for name, arrays in sources.items():
        _gather(folder / files[name], arrays, places)
    content = {
        **manifest,
        "format_version": FORMAT_VERSION,
        "generation": generation,
        "count": len(items),
        "fields": files,
    }
    text = json.dumps(content, indent=2, ensure_ascii=False)
    with atomic_write(folder / "items.parquet") as file:
        pq.write_table(items.replace_schema_metadata({_KEY: text.encode()}), file)
    write_text(folder / "manifest.json", text + "\n")
    for name in files:
        for path in folder.glob(f"{name}-[0-9][0-9][0-9][0-9]*.npy"):
            if path.name not in files.values():
                path.unlink(missing_ok=True)


def _gather(target: Path, arrays: list[Array], places: Array) -> None:
    """Write rows of several arrays as one, a block at a time."""
    shape = (len(places), *arrays[0].shape[1:])
    head = np.lib.format.header_data_from_array_1_0(np.empty((0, *shape[1:]), arrays[0].dtype))
    head["shape"] = shape
    with atomic_write(target) as file:
        np.lib.format.write_array_header_1_0(file, head)
        for part in chunks(len(places), _BLOCK):
            block = places[part]
            rows = np.empty((len(block), *shape[1:]), arrays[0].dtype)
            for source in np.unique(block[:, 0]):
                own = block[:, 0] == source
                rows[own] = arrays[source][block[own, 1]]
            file.write(rows.tobytes())


def read_calibration(folder: Path, make: Callable[[Any], Kind]) -> Kind | None:
    """What is made of the calibration of an index, a dictionary; None where there is none."""
    again = "itmkit index learns it again"
    return _read_beside(folder / "calibration.json", make, "calibrate", again)


def _read_beside(path: Path, make: Callable[[Any], Kind], writer: str, again: str) -> Kind | None:
    """What is made of a file that an index can do without; None where there is none."""
    if not path.is_file():
        return None
    try:
        return make(read_json(path))
    except InputError as error:
        raise InputError(f"{error}; remove this file: {again}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} has wrong or missing entries: {error}; expected what {writer} wrote, or no "
            "such file"
        ) from error


def write_calibration(folder: Path, content: Mapping[str, Any]) -> None:
    """Store the calibration of an index."""
    write_text(folder / "calibration.json", json.dumps(content, indent=2) + "\n")


def read_faiss(folder: Path, make: Callable[[Any], Kind]) -> Kind | None:
    """What is made of what is known of the faiss index, a dictionary; None where there is none."""
    again = "itmkit index --factory builds it again"
    return _read_beside(folder / "faiss.json", make, "a build", again)


def new_faiss_file(folder: Path) -> str:
    """A name for a faiss index that none in this folder has."""
    numbers = [int(path.stem.rpartition("-")[2]) for path in _faiss_files(folder)]
    return f"faiss-{max(numbers, default=0) + 1:04d}.index"


def write_faiss(folder: Path, content: Mapping[str, Any]) -> None:
    """Make the faiss index whose ``file`` is there that of the index, and remove others."""
    write_text(folder / "faiss.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    for path in _faiss_files(folder):
        if path.name != content["file"]:
            path.unlink(missing_ok=True)


def _faiss_files(folder: Path) -> list[Path]:
    return list(folder.glob("faiss-[0-9][0-9][0-9][0-9]*.index"))


def _may_be_ours(name: str) -> bool:
    """Whether a stopped run may have left a file, before there was an index."""
    return re.fullmatch(r"\.lock|partial|\..*\.part|\w+-\d{4,}\.npy", name) is not None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the lock of an index.

    Raises:
        InputError: if another process holds it, or the folder is a file or holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output is '{folder}', a file; expected a folder")
    known = exists(folder) or (folder / "partial" / "identity.json").is_file()
    if folder.is_dir() and not known:
        others = sorted(path.name for path in folder.iterdir() if not _may_be_ours(path.name))
        if others:
            raise InputError(
                f"output is '{folder}', which holds other files, such as {others[0]!r}; expected "
                "an index or a new folder"
            )
    with sole_writer(folder, folder / ".lock"):
        yield
