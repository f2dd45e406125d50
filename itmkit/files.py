"""Files that are written whole or not at all, and paths as a user gives them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(target: str | Path) -> Iterator[IO[bytes]]:
    """A file to write to that takes its name at the end, when it is on disk; else never.

    Raises:
        OSError: with the name of the file, if it cannot be written or the disk is full.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(target)
        raise
    with suppress(OSError):  # not every file system lets a folder be synchronised
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file in UTF-8, all of it or nothing."""
    with atomic_write(target) as file:
        file.write(text.encode("utf-8"))


def copy_file(source: str | Path, target: str | Path) -> None:
    """Copy a file so that under the new name there is all of it, or nothing."""
    with open(source, "rb") as content, atomic_write(target) as file:
        shutil.copyfileobj(content, file)


def user_path(path: str | Path) -> Path:
    """A path as a user types it: ``~`` is the home folder."""
    return Path(path).expanduser()
