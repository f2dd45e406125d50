"""Memory of the process."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of malloc.h
_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep the memory of large tensors that are freed, for those that come next.

    It gives such blocks back to the kernel otherwise, and every batch takes them anew, page by
    page: a third of the processor time of ``itmkit extract`` (docs/performance.md). Elsewhere than
    on Linux with glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _BYTES)
        mallopt(_TRIM_THRESHOLD, _BYTES)
