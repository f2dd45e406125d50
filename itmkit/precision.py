"""Precision of losses and scores, and how fast half precision is on this processor."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is if it is float64.

    Example:
        >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def autocast_off(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which operations on the device of ``tensor`` keep their precision.

    Example:
        >>> with autocast_off(torch.zeros(1)):
        ...     torch.is_autocast_enabled("cpu")
        False
    """
    if tensor.is_meta:  # which has no autocast
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


#: A dtype counts as slow from this ratio on: half precision that a processor has is below 1,
#: emulated half precision above 2.5, and the measurement is uncertain by some per cent.
SLOW = 1.2


@cache
def cpu_slowdown(dtype: torch.dtype) -> float:
    """How many times as long as in float32 a small Linear layer takes on this processor.

    Measured once for each dtype, on one thread, in a few milliseconds: a processor without
    instructions for a dtype emulates it. Large products may be slowed down much more.
    """
    x, weight = torch.ones(64, 256), torch.ones(256, 256)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            full = least_seconds(partial(F.linear, x, weight))
            half = least_seconds(partial(F.linear, x.to(dtype), weight.to(dtype)))
    finally:
        torch.set_num_threads(threads)
    return half / full


def warn_if_slow_on_cpu(option: str, dtype: torch.dtype) -> None:
    """Warn where this processor is slower in ``dtype`` than in float32, with the measured ratio.

    Args:
        option: what asks for the dtype, as the user writes it.
        dtype: a floating dtype.
    """
    slowdown = cpu_slowdown(dtype)
    if slowdown > SLOW:
        warnings.warn(
            f"{option} is slow on this processor: a Linear layer takes {slowdown:.1f} times as "
            f"long in {str(dtype).removeprefix('torch.')} as in float32",
            stacklevel=3,
        )


def least_seconds(work: Callable[[], object], repeats: int = 10) -> float:
    """The least time of several repetitions, after one that is not counted."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
