"""Files that are written whole or not at all, and paths as a user gives them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from itmkit.checks import InputError, type_of


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
        # One without a number is of what the content comes from, such as a file of Arrow.
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
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


def read_text(path: str | Path) -> str:
    r"""The text of a UTF-8 file, with or without a byte order mark; line ends are ``\n``.

    A lone ``\r`` is no line end: it stays as it is.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not UTF-8.
    """
    path = user_path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path} is UTF-16; expected UTF-8")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = 1 + content[: error.start].count(b"\n")
        raise InputError(f"{path} is not UTF-8: {error.reason} in line {line}") from error


def read_json(path: str | Path) -> Any:
    """What a JSON file in UTF-8 holds.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not UTF-8, or not JSON.
    """
    try:
        return json.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}") from error


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The entries of a YAML file in UTF-8, none where it is empty; also of a JSON file.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not UTF-8, not YAML, or holds anything else.
    """
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except InputError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: 2020-13-13
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{path}{where} is not YAML: {problem}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type_of(content)}; expected entries such as 'name: mine'")
    return content


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user types it: ``~`` is the home folder, ``~name`` that of another user."""
    return Path(os.path.expanduser(path))


@contextmanager
def sole_writer(folder: Path, lock: Path) -> Iterator[None]:
    """Hold a lock file, which the system releases when the process ends.

    Args:
        folder: that is written, for the error.
        lock: the file; its folder is made.

    Raises:
        InputError: if another process holds it.
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=0)
    try:
        held.acquire()
    except Timeout:
        raise InputError(
            f"{folder} is being written by another process; expected to be the only one"
        ) from None
    try:
        yield
    finally:
        held.release()


@contextmanager
def sole_writer_beside(target: Path) -> Iterator[None]:
    """:func:`sole_writer` of a file or folder, by a lock beside it that is gone at the end."""
    target = target.resolve()
    lock = target.with_name(f".{target.name}.lock")
    with sole_writer(target, lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def check_different(argument: str, given: Sequence[str | Path], files: Sequence[Path]) -> None:
    """Refuse one file, or folder, that is given twice, under whatever names.

    Args:
        argument: name of the argument.
        given: as the user wrote them.
        files: what they stand for.

    Raises:
        InputError: with both names.
    """
    seen: dict[Path, str | Path] = {}
    for name, file in zip(given, files, strict=True):
        real = file.resolve()
        if real in seen:
            raise InputError(
                f"{argument} has '{seen[real]}' and '{name}', which are both {file}; expected each "
                "once"
            )
        seen[real] = name


def file_state(path: Path) -> str:
    """Name, size and time of change of a file: what tells that it is another one."""
    found = path.stat()
    return f"{path.name} {found.st_size} {found.st_mtime_ns}"


def default_cache() -> Path:
    """Folder of what is computed once: ``itmkit`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    return user_path(Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "itmkit")


def fill_once(folder: Path, fill: Callable[[Path], object]) -> None:
    """Fill a folder of a cache, by the process that comes first; the others wait for it.

    Args:
        folder: made where missing; what is in it of a process that was stopped, ``fill`` sees.
        fill: is called with the folder, unless an earlier call has returned.
    """
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    complete = folder / "complete"
    if complete.exists():
        return
    with FileLock(folder / ".lock"):
        if not complete.exists():
            fill(folder)
            complete.touch()


def check_folder(argument: str, folder: Path) -> None:
    """Raise unless there is such a folder.

    Raises:
        FileNotFoundError: with the name of the argument.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{argument}={str(folder)!r} is not a folder")


def check_new_file(argument: str, path: Path) -> None:
    """Raise unless a file can get this path; its folder is made.

    Raises:
        InputError: if the path is that of a folder.
        OSError: if there can be no such folder.
    """
    if path.is_dir():  # also of the empty path
        raise InputError(f"{argument} is '{path}', a folder; expected the path of a file")
    path.parent.mkdir(parents=True, exist_ok=True)


def path_inside(folder: Path, path: str | Path) -> Path:
    """A path relative to a folder that it is in, with the folders between; else its name alone."""
    full = Path(path)
    return full.relative_to(folder) if full.is_relative_to(folder) else Path(full.name)
