"""What pictures inside files have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from itmkit.data.captions import check_name
from itmkit.data.table import FILE_COLUMNS, Table

NAME_COLUMN = "file_name"  # of a table: the names of its pictures


class PictureFile(ABC):
    """Pictures inside files, still encoded (JPEG, PNG …), with what stands beside them.

    Attributes:
        path: of the file, or of the folder of files; for errors.
        names: one a picture, each once.
        table: what stands beside the pictures, such as captions; its column ``file_name`` has the
            names. Of a picture there may be several rows.
        of_split: whether all of it is of the split that was asked for.
    """

    path: Path
    names: Sequence[str]
    table: Table
    of_split = False

    @abstractmethod
    def read(self, row: int) -> bytes:
        """A picture, as it is in the file.

        Raises:
            BadSampleError: if this one cannot be read.
            InputError: if the file is not the one that was opened.
        """

    @abstractmethod
    def state(self, row: int) -> str:
        """What changes when a picture does."""

    def __len__(self) -> int:
        return len(self.names)


def given_names(columns: Mapping[str, Sequence[Any]], rows: int) -> Sequence[str | None]:
    """The names in a column of the file, where it has one."""
    for own in (columns.get(name) for name in FILE_COLUMNS):
        if own and all(isinstance(name, str) for name in own):
            return own
    return [None] * rows


def name_inside(name: str | None, source: str) -> str | None:
    """A name as an image may have it: of a whole path the file, as that is of another machine."""
    if not name:
        return None
    path = PurePosixPath(name)
    name = path.name if path.is_absolute() else str(path)
    check_name(name, source)
    return name
