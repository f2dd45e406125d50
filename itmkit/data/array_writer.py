"""Arrays of features, written to disk block by block, so that a stopped process can go on."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.files import write_text


class ArrayWriter:
    """A ``.npy`` file that is written in blocks of rows and gets its name when all are there.

    Stopped at any point, the next writer of the same settings continues after the last whole block.

    Args:
        target: path of the file.
        settings: what the rows are made of, as JSON can hold it; with its ``shape`` and ``dtype``.
        notes: path of the JSON file beside a finished target that has these settings, which
            whoever finishes it writes.
        progress: path of the JSON file beside an unfinished one.

    Attributes:
        complete: the notes beside the target, which is there already; None where it is not.
        done: rows that are on disk.

    Raises:
        InputError: if the target, or what is there of it, was made with other settings.
        OSError: if the disk has too little room.
    """

    def __init__(
        self, target: Path, settings: Mapping[str, Any], *, notes: Path, progress: Path
    ) -> None:
        self.target, self.settings, self._progress = target, dict(settings), progress
        self.part = target.with_name(f"{target.name}.part")
        self.complete: dict[str, Any] | None = None
        self.dtype = np.dtype(settings["dtype"])
        shape = tuple(settings["shape"])
        self.done = 0
        if target.exists():
            self.complete, self.done = _read(notes), shape[0]
            _check_settings(target, notes, self.complete, settings)
            return
        header = _header(shape, self.dtype)
        row_size = int(np.prod(shape[1:])) * self.dtype.itemsize
        if self.part.exists() and progress.exists():
            found = _read(progress)
            _check_settings(self.part, progress, found.get("settings", {}), settings)
            done = found.get("done", -1)
            there = (self.part.stat().st_size - len(header)) // row_size
            if not isinstance(done, int) or not 0 <= done <= there:
                raise InputError(
                    f"{self.part} has {there} rows; expected {done}, as in {progress.name}: "
                    "delete both"
                )
            self.done = done
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_room(target.parent, (shape[0] - self.done) * row_size)
        # Written, not mapped: on a full disk a write is an error, and a map the end of the process.
        self._file = self.part.open("r+b" if self.done else "wb", buffering=0)
        _write_all(self._file, header)
        self._file.seek(len(header) + self.done * row_size)

    def write(self, block: np.ndarray[Any, Any], names: Iterable[str]) -> None:
        """Append rows, on disk when this returns.

        Args:
            block: ``(n, …)``, of any type of floats.
            names: what each row is of, for an error.

        Raises:
            InputError: if a number is not finite in the type of the file.
            OSError: with the name of the file, if it cannot be written.
        """
        with np.errstate(over="ignore"):
            block = block.astype(self.dtype)
        finite = np.isfinite(block).reshape(len(block), -1).all(axis=1)
        if not finite.all():
            name = list(names)[int(np.argmin(finite))]
            raise InputError(f"the features of {name} are not finite in {self.dtype}")
        _write_all(self._file, block.tobytes())
        self.done += len(block)
        content = {"done": self.done, "settings": self.settings}
        write_text(self._progress, json.dumps(content))

    def finish(self) -> None:
        """Give the file its name. All that belongs beside it has to be written before."""
        self._file.close()
        os.replace(self.part, self.target)
        self._progress.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.complete is None:
            self._file.close()


def digest(parts: Iterable[bytes]) -> str:
    """A short hash of some parts, in their order."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part + b"\n")
    return found.hexdigest()[:16]


def digest_of_weights(module: nn.Module) -> str:
    """A short hash of the names and values of all parameters and buffers."""

    def parts() -> Iterator[bytes]:
        for name, tensor in module.state_dict().items():
            yield name.encode()
            yield _bytes_of(tensor)

    return digest(parts())


def _bytes_of(tensor: Tensor) -> bytes:
    import torch

    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _check_settings(
    path: Path, notes: Path, found: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    other = [key for key in settings if found.get(key) != settings[key]]
    if other:
        key = other[0]
        raise InputError(
            f"{path} was made with other settings: {key} is {found.get(key)!r} in {notes.name}, "
            f"but {settings[key]!r} now. Choose another output, or delete the file"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(
        header, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return header.getvalue()


def _check_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            errno.ENOSPC,
            f"the features need {size:,} bytes, but only {free:,} are free",
            str(folder),
        )


def _write_all(file: io.FileIO, content: bytes) -> None:
    rest = memoryview(content)
    with _naming(Path(file.name)):
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in an error of writing, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
