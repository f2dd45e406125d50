"""Two or more ways to do one thing, timed side by side in one process."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Comparison:
    """Our way and another one of doing the same work on the same inputs.

    Args:
        name: ``file.case``, the same in every run, so that runs can be compared.
        work: what is done, with its sizes.
        against: the other way.
        ours: what each of our repetitions took.
        theirs: what each repetition of the other way took, interleaved with ours.
        target: the ratio that is aimed at, None where there is none.
        better: ``"faster"``: the ratio is theirs / ours, at least ``target``; ``"overhead"``: it is
            ours / theirs, at most ``target``.
        unit: of ``ours`` and ``theirs``.
        difference: largest difference of the outputs.
        floors: lower bounds of the time in seconds, by name, from measured rates of the machine.
        note: what a reader must know.
    """

    name: str
    work: str
    against: str
    ours: list[float]
    theirs: list[float]
    target: float | None = None
    better: Literal["faster", "overhead"] = "faster"
    unit: Literal["s", "MB"] = "s"
    difference: float | None = None
    floors: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def ratio(self) -> float:
        """Of the medians."""
        ours, theirs = statistics.median(self.ours), statistics.median(self.theirs)
        return theirs / ours if self.better == "faster" else ours / theirs

    @property
    def met(self) -> bool | None:
        """Whether the target is reached."""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.better == "faster" else self.ratio <= self.target


@dataclass(frozen=True)
class Skipped:
    """A comparison that this machine is not fit for.

    Args:
        name: that of the comparison.
        work: what would be done.
        reason: why it is not.
    """

    name: str
    work: str
    reason: str


def interleave(
    ways: Mapping[str, Callable[[], Any]], *, repeats: int = 7, warmup: int = 1
) -> dict[str, list[float]]:
    """Seconds of every repetition of every way; the ways take turns, so noise meets them alike."""
    for way in ways.values():
        for _ in range(warmup):
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    gc.collect()
    for _ in range(repeats):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return seconds
