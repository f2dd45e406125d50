"""Where the pictures inside a file are: found once, kept in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from itmkit.files import atomic_write, default_cache, file_state, fill_once

_FILE = "index.parquet"
_VERSION = "1"  # of what is in the cache


class Place(NamedTuple):
    """Where a picture is, a row each."""

    name: str | None
    offset: int
    size: int
    digest: str | None  # of what it is; None where each name is there once


class Index(NamedTuple):
    """What is in a file, as lists of a row each."""

    content: Path  # that the offsets are in
    places: list[Place]
    columns: dict[str, list[Any]]  # what stands beside the pictures
    lines: Sequence[str]  # what a row is called in errors


class Places(NamedTuple):
    """What the cache keeps of a file."""

    folder: Path
    places: list[Place]
    beside: list[dict[str, Any]]  # of every picture what stands beside it


def cached_places(path: Path, fill: Callable[[Path], object], *, of: str = "") -> Places:
    """Where the pictures of a file are, found once.

    Args:
        path: of the file; another one, or a changed one, is indexed anew.
        fill: calls :func:`write_places` in the folder that it is given.
        of: what else the places depend on.
    """
    from pyarrow import parquet

    parts = (_VERSION, str(path.resolve()), file_state(path), of)
    key = sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    folder = default_cache() / f"pictures-{path.stem}-{key}"
    fill_once(folder, fill)
    columns = parquet.read_table(folder / _FILE).to_pydict()
    beside = [json.loads(row) for row in columns.pop("beside")]
    return Places(folder, [Place(*row) for row in zip(*columns.values(), strict=True)], beside)


def write_places(
    folder: Path, places: Sequence[Place], beside: Sequence[Mapping[str, Any]] | None = None
) -> None:
    """Write what :func:`cached_places` reads."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: [getattr(place, name) for place in places] for name in Place._fields}
    columns["beside"] = [json.dumps(row) for row in beside or [{}] * len(places)]
    types = {"name": pa.string(), "offset": pa.int64(), "size": pa.int64(), "digest": pa.string()}
    schema = pa.schema({**types, "beside": pa.string()})
    with atomic_write(folder / _FILE) as file:
        parquet.write_table(pa.table(columns, schema=schema), file)
