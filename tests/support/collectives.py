"""Which collectives a piece of code makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch.distributed as dist

NAMES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
)


@contextmanager
def counted() -> Iterator[list[str]]:
    """Fills the list with the name of every collective that is called through torch.distributed."""
    made: list[str] = []
    originals = {name: getattr(dist, name) for name in NAMES}

    def noted(name: str) -> Any:
        @wraps(originals[name])
        def call(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return originals[name](*args, **kwargs)

        return call

    for name in NAMES:
        setattr(dist, name, noted(name))
    try:
        yield made
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
