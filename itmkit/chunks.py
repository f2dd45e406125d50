"""Cut a long row of items into chunks of a bounded size, or take some of them."""

from __future__ import annotations

from collections.abc import Iterator


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most ``most`` numbers below ``count``, evenly spaced.

    Example:
        >>> evenly_spaced(10, 4), evenly_spaced(2, 4)
        ([0, 2, 5, 7], [0, 1])
    """
    kept = min(count, most)
    return [number * count // kept for number in range(kept)]


def chunks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` items that cover ``length`` items in order.

    Example:
        >>> list(chunks(5, 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
