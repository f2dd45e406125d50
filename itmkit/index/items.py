"""The pictures of a folder as an index lists them: path, size, time of change, hash."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from itmkit.index.columns import column_arrays

if TYPE_CHECKING:
    import pyarrow as pa


class FileState(NamedTuple):
    """Size in bytes and time of change in nanoseconds: while both stay, a file is unchanged."""

    size: int
    mtime: int


def file_states(root: Path, names: Iterable[str]) -> dict[str, FileState]:
    """The state of every file by its name; files that are gone are left out.

    Of a link that leads nowhere it is the state of the link.
    """
    states = {}
    for name in names:
        try:
            found = os.stat(root / name)
        except OSError:
            try:
                found = os.lstat(root / name)
            except FileNotFoundError:
                continue
        states[name] = FileState(found.st_size, found.st_mtime_ns)
    return states


def file_hash(path: Path) -> str:
    """Hash of a file's content, 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def items_table(
    names: Sequence[str],
    states: Mapping[str, FileState],
    hashes: Mapping[str, str],
    columns: Mapping[str, Mapping[str, Any]],
) -> pa.Table:
    """One row a picture.

    Args:
        names: paths relative to the folder, in the order of the vectors.
        states: of every name.
        hashes: of every name.
        columns: the user's own, each from name to value; null where a name has none.

    Raises:
        InputError: if a column of the user has the name of one of ours, or mixed types.
    """
    import pyarrow as pa

    content: dict[str, Any] = {
        "path": pa.array(names, pa.string()),
        "size": pa.array([states[name].size for name in names], pa.int64()),
        "mtime": pa.array([states[name].mtime for name in names], pa.int64()),
        "hash": pa.array([hashes[name] for name in names], pa.string()),
    }
    return pa.table(content | column_arrays(names, columns))
