"""Cut a long row of items into chunks of a bounded size."""

from __future__ import annotations

from collections.abc import Iterator


def chunks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` items that cover ``length`` items in order.

    Example:
        >>> list(chunks(5, 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
