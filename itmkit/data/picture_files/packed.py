"""Pictures of tar and Parquet files, read where they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from itmkit.checks import InputError
from itmkit.data.picture_files.base import NAME_COLUMN, PictureFile, given_names, name_inside
from itmkit.data.picture_files.index import Place
from itmkit.data.picture_files.parquet import index_parquet
from itmkit.data.picture_files.tar import index_tar
from itmkit.data.table import Table
from itmkit.files import file_state


class PackedPictures(PictureFile):
    """Pictures of tar or Parquet files; see :func:`open_pictures`.

    Args:
        paths: of the files, of one kind.
        column: of the pictures of Parquet files; None: the only one, or ``image`` or ``picture``.
        path: what stands for all of the files in errors; None: the first one.

    Raises:
        InputError: as of :func:`open_pictures`.
    """

    def __init__(
        self, paths: Sequence[Path], *, column: str | None = None, path: Path | None = None
    ) -> None:
        self.path = path or paths[0]
        for own in paths:
            if not own.is_file():
                raise FileNotFoundError(f"{own} is missing")
        indices = [
            index_tar(own) if own.suffix.lower() == ".tar" else index_parquet(own, column)
            for own in paths
        ]
        self._files = [_Bytes(index.content) for index in indices]
        self._states = [file_state(own) for own in paths]
        self._pictures: list[tuple[int, Place]] = []  # of every picture the file and the place
        columns: dict[str, list[Any]] = {key: [] for index in indices for key in index.columns}
        columns[NAME_COLUMN] = []
        lines: list[str] = []
        first: dict[str, tuple[str, str | None]] = {}  # of every name the line and the digest
        unnamed: dict[str | None, str] = {}  # of every digest the name
        for file, (own, index) in enumerate(zip(paths, indices, strict=True)):
            where = f"{own.name}, " if len(paths) > 1 else ""
            given = given_names(index.columns, len(index.places))
            for place, line, known in zip(index.places, index.lines, given, strict=True):
                name = name_inside(known, f"{own}, {line}") or place.name
                name = name or unnamed.setdefault(place.digest, f"{len(lines):08d}")
                lines.append(f"{where}{line}")
                columns[NAME_COLUMN].append(name)
                if name not in first:
                    first[name] = lines[-1], place.digest
                    self._pictures.append((file, place))
                elif place.digest is None or first[name][1] != place.digest:
                    raise InputError(
                        f"{self.path}, {lines[-1]} has another picture {name!r} than "
                        f"{first[name][0]}; expected each name once"
                    )
            for key in columns.keys() - {NAME_COLUMN}:
                columns[key] += index.columns.get(key) or [None] * len(index.places)
        self.names = list(first)
        self.table = Table(self.path, columns, lines, unit="")

    def read(self, row: int) -> bytes:
        file, place = self._pictures[row]
        return self._files[file].read(place.offset, place.size)

    def state(self, row: int) -> str:
        file, place = self._pictures[row]
        return f"{self._states[file]} {place.offset} {place.size}"


class _Bytes:
    """A file of which pieces are read, opened in every process anew."""

    def __init__(self, path: Path) -> None:
        self.path, self._state, self._file = path, file_state(path), -1

    def read(self, offset: int, size: int) -> bytes:
        if self._file < 0:
            self._file = os.open(self.path, os.O_RDONLY)
        content = os.pread(self._file, size, offset)
        if len(content) < size or file_state(self.path) != self._state:
            raise InputError(f"{self.path} was changed while it was in use; expected one file")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": -1}

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)
