"""The pictures of a folder as an index lists them: path, size, time of change, hash."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from itmkit.data.captions import fits_a_line
from itmkit.index.columns import column_arrays
from itmkit.index.update import Skipped

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


class FoundFiles:
    """The files of a folder that may be read, by their hashes, and those that are skipped.

    Args:
        root: the folder.
        names: of the files.
        listed: of an index that there is (:func:`listed_files`): the hash of a file that did not
            change is taken from there.
        skipped: files that this index could not read: those that did not change, and were tried
            with the same, are skipped again.
        tried_with: see :class:`~itmkit.index.Skipped`.

    Attributes:
        states: of all files.
        hashes: of those that may be read.
        skipped: the others, each with the reason.
    """

    def __init__(
        self,
        root: Path,
        names: Iterable[str],
        listed: Mapping[str, tuple[FileState, str]],
        skipped: Iterable[Skipped] = (),
        tried_with: str = "",
    ) -> None:
        self.root, self.states, self.tried_with = root, file_states(root, names), tried_with
        self.hashes: dict[str, str] = {}
        self.skipped: list[Skipped] = []
        bad = {one.path: one for one in skipped if one.tried_with == tried_with}
        for name, state in self.states.items():
            path = root / name
            if name in bad and (bad[name].size, bad[name].mtime) == state:
                self.skipped.append(bad[name])
            elif not path.is_file():  # a pipe would be waited for, for ever
                self.skip(name, f"{path} is missing, or not a file")
            elif name in listed and listed[name][0] == state:
                self.hashes[name] = listed[name][1]
            else:
                try:
                    self.hashes[name] = file_hash(path)
                except OSError as error:  # may be gone next time, while the file stays as it is
                    self.skipped.append(Skipped(name, f"{path}: {error.strerror}", *state))

    def skip(self, name: str, reason: str) -> None:
        """Note that a file is not read."""
        self.skipped.append(Skipped(name, reason, *self.states[name], self.tried_with))

    def skip_names(self, names: Iterable[str]) -> None:
        """Note files whose names an index cannot hold."""
        for name, state in file_states(self.root, names).items():
            readable = os.fsencode(name).decode("utf-8", "backslashreplace")
            readable = "".join(one if fits_a_line(one) else repr(one)[1:-1] for one in readable)
            reason = f"{self.root / readable} has a path that is not one line of UTF-8; rename it"
            self.skipped.append(Skipped(readable, reason, *state))


def listed_files(items: pa.Table) -> dict[str, tuple[FileState, str]]:
    """State and hash of the files of an index, by path."""
    columns = (items[name].to_pylist() for name in ("path", "size", "mtime", "hash"))
    return {
        path: (FileState(size, mtime), content)
        for path, size, mtime, content in zip(*columns, strict=True)
    }


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
