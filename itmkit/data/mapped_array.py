"""A ``.npy`` file of floats on disk, of which only the rows asked for are read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import compress
from mmap import ALLOCATIONGRANULARITY, MADV_WILLNEED, PAGESIZE, mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch

from itmkit.checks import InputError
from itmkit.files import user_path

_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class MappedArray:
    """A ``.npy`` file of floats of which only the rows asked for are read.

    Args:
        path: of an array, float16, float32 or float64.
        kind: what its dimensions are, such as ``("images", "regions", "dim")``.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is no whole ``.npy`` file, or of another rank or type.
    """

    def __init__(self, path: str | Path, kind: tuple[str, ...]) -> None:
        self.path = user_path(path)
        self._array: np.memmap[Any, Any] | None = None
        self._stamp = _stamp(self.path)
        array = self.array
        if array.ndim != len(kind):
            raise InputError(
                f"{self.path} has the shape {array.shape}; expected rank {len(kind)}, "
                f"({', '.join(kind)})"
            )
        if array.dtype.kind != "f":
            raise InputError(f"{self.path} holds {array.dtype}; expected float16 or float32")
        if 0 in array.shape[1:]:
            raise InputError(f"{self.path} has the shape {array.shape}; expected no empty rows")
        self.shape: tuple[int, ...] = array.shape
        # of a file that memory cannot keep, every reading is as the first one
        self._stays = array.nbytes < _MEMORY / 2

    @property
    def array(self) -> np.memmap[Any, Any]:
        """The memory-mapped array."""
        if self._array is None:
            self._array = open_array(self.path)
            self._unread = np.ones(len(self._array), dtype=bool)
        return self._array

    def fill(
        self, out: Sequence[np.ndarray[Any, Any]], rows: Sequence[slice], columns: slice
    ) -> None:
        """Copy rows of the file to float32 arrays.

        Args:
            out: for every slice an array of the shape of what is copied.
            rows: slices with a start and a stop.
            columns: of the second dimension.

        Raises:
            NotFiniteError: if a value is not finite.
            InputError: if the file is not the one that was opened.
        """
        if _stamp(self.path) != self._stamp:
            raise InputError(self._changed)
        mapped, size = self.array.base, self._stamp[1]
        assert isinstance(mapped, mmap)
        stored = np.asarray(self.array)[:, columns]
        unread = [bool(self._unread[own].any()) for own in rows]
        for own in compress(rows, unread):
            self._announce(mapped, own.start, stored[own].nbytes)
        with np.errstate(over="ignore"):
            for own, features, first in zip(rows, out, unread, strict=True):
                if mapped.size() < size:  # to read what is no longer there would end the process
                    raise InputError(self._changed)
                _copy(stored[own], features)
                if first and not np.isfinite(features).all():
                    place = np.argwhere(~np.isfinite(features))[0].tolist()
                    raise NotFiniteError(
                        (own.start + place[0], *place[1:]), float(stored[own][tuple(place)])
                    )
        if self._stays:
            for own in rows:
                self._unread[own] = False

    def padded(self, spans: Sequence[slice], columns: slice) -> np.ndarray[Any, Any]:
        """Spans of rows of a file of rank 2 as float32 ``(n, L, D)``, zero behind the shorter ones.

        Args:
            spans: slices with a start and a stop.
            columns: of the second dimension.

        Raises:
            NotFiniteError: if a value is not finite.
            InputError: if the file is not the one that was opened.
        """
        lengths = [span.stop - span.start for span in spans]
        block = np.zeros((len(spans), max(lengths, default=0), self.shape[1]), dtype=np.float32)
        own = [part[:length] for part, length in zip(block, lengths, strict=True)]
        self.fill(own, spans, columns)
        return block

    def _announce(self, mapped: mmap, row: int, size: int) -> None:
        # The rows of a batch are then fetched from the disk together, and not page by page.
        start = self.array.offset % ALLOCATIONGRANULARITY + row * self.array.strides[0]
        page = start // PAGESIZE * PAGESIZE
        mapped.madvise(MADV_WILLNEED, page, start - page + size)

    @property
    def _changed(self) -> str:
        return f"{self.path} was changed while it was in use; expected one file"

    def __len__(self) -> int:
        return self.shape[0]

    def __getstate__(self) -> dict[str, Any]:
        # A worker process opens the file again instead of being sent all of it.
        return {**self.__dict__, "_array": None, "_unread": None}


class NotFiniteError(InputError):
    """A value of a file is not finite: its place, and the value."""

    def __init__(self, place: tuple[int, ...], value: float) -> None:
        super().__init__(f"the value {value:g} at {place} is not finite")
        self.place, self.value = place, value


def _copy(stored: np.ndarray[Any, Any], features: np.ndarray[Any, Any]) -> None:
    if stored.dtype in (np.float16, np.float64):  # of this machine's byte order
        # torch converts nine times faster, but warns of memory that is read-only
        torch.from_numpy(features).copy_(torch.from_numpy(stored.copy()))
    else:
        features[...] = stored


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    return found.st_ino, found.st_size, found.st_mtime_ns


def open_array(path: Path) -> np.memmap[Any, Any]:
    """Memory-map a ``.npy`` file.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is no whole ``.npy`` file.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is missing") from None
    except OSError:
        raise
    except Exception as error:  # a header that is none raises nearly anything in numpy
        raise InputError(f"{path} is not a whole .npy file of numbers: {error}") from error
    if not isinstance(array, np.memmap):
        array.close()
        raise InputError(f"{path} is not a whole .npy file of numbers but an archive of them")
    return array
