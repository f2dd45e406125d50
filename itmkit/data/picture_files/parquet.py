"""Pictures of a Parquet file, as Hugging Face has them."""

from __future__ import annotations

import sys
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from itmkit.checks import InputError, did_you_mean
from itmkit.data.picture_files.base import name_inside
from itmkit.data.picture_files.index import Index, Place, cached_places, write_places
from itmkit.data.table import parquet_columns, parquet_errors, picture_columns
from itmkit.files import atomic_write

_PICTURES = "pictures"  # in the cache
_USUAL = ("image", "picture")  # columns of pictures, where there are several


def index_parquet(path: Path, column: str | None = None) -> Index:
    """The pictures of a Parquet file, and its other columns; the pictures are unpacked once.

    Args:
        path: of the file.
        column: of the pictures; None: the only one, or ``image`` or ``picture``.
    """
    from pyarrow import parquet

    with parquet_errors(path):
        schema = parquet.read_schema(path)
    column = picture_column(schema, column, path)
    folder, places, _ = cached_places(path, partial(_unpack, path, column), of=column)
    lines = [f"row {number}" for number in range(1, len(places) + 1)]
    columns = parquet_columns(path, without=column)
    return Index(folder / _PICTURES, places, columns, lines)


def _unpack(path: Path, column: str, folder: Path) -> None:
    """Write the pictures of a Parquet file one after the other into a file, each once."""
    from pyarrow import parquet

    places: list[Place] = []
    written: dict[str, tuple[int, int]] = {}  # offset and size by digest
    with parquet_errors(path), parquet.ParquetFile(path) as file:
        count = file.metadata.num_rows
        print(f"{path}: {count:,} rows with pictures are unpacked once: {folder}", file=sys.stderr)
        with atomic_write(folder / _PICTURES) as out:
            for batch in file.iter_batches(batch_size=64, columns=[column]):
                for found in batch.column(0).to_pylist():
                    source = f"{path}, row {len(places) + 1}"
                    name, content = _name_and_bytes(found, source)
                    digest = blake2b(content, digest_size=16).hexdigest()
                    if digest not in written:
                        written[digest] = out.tell(), len(content)
                        out.write(content)
                    places.append(Place(name, *written[digest], digest))
    if not places:
        raise InputError(f"{path} has no rows; expected one or more")
    write_places(folder, places)


def picture_column(schema: Any, given: str | None, path: Path) -> str:
    """The column of a table that holds pictures."""
    found = picture_columns(schema)
    if given is not None and given not in found:
        raise InputError(
            f"file_column is {given!r}, but {path} has pictures in "
            f"{', '.join(map(repr, found)) or 'no column'}{did_you_mean(given, found)}"
        )
    usual = [name for name in found if name.lower() in _USUAL]
    if given is None and len(found) != 1 and len(usual) != 1:
        there = ", ".join(map(repr, found or schema.names))
        raise InputError(
            f"{path} has the columns of pictures {there}; expected one, or the option file_column"
            if found
            else f"{path} has the columns {there}; expected one of pictures, {{bytes, path}} or "
            "bytes"
        )
    return given or (usual or found)[0]


def _name_and_bytes(found: Any, source: str) -> tuple[str | None, bytes]:
    """The name of a picture, where a row has one, and what it is."""
    name, content = None, found
    if isinstance(found, dict):
        name, content = found.get("path"), found.get("bytes")
    if not content:
        path = f" but the path {name!r}" if name else ""
        raise InputError(f"{source} has no picture{path}; expected its bytes inside the file")
    return name_inside(name, source), content
