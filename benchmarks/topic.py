"""Runs one topic, in a process of its own: ``python -m benchmarks.topic NAME FILE``."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import THREADS, machine
from benchmarks.report import spread, summary
from benchmarks.timing import Comparison, Skipped


def record(comparison: Comparison | Skipped) -> dict[str, Any]:
    """A comparison with what follows from it, and the date."""
    if isinstance(comparison, Skipped):
        return asdict(comparison)
    ways = {"ours": comparison.ours, "theirs": comparison.theirs}
    return (
        asdict(comparison)
        | {way: [float(f"{value:.5g}") for value in values] for way, values in ways.items()}
        | {
            "medians": {way: statistics.median(values) for way, values in ways.items()},
            "spread": {way: spread(values) for way, values in ways.items()},
            "ratio": comparison.ratio,
            "met": comparison.met,
            "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
    )


def main(name: str, path: str) -> None:
    """Write what the topic found; of the topic ``machine``, what the machine is."""
    torch.set_num_threads(THREADS)
    if name == "machine":
        Path(path).write_text(json.dumps(machine()))
        return
    comparisons: Iterator[Comparison | Skipped] = importlib.import_module(
        f"benchmarks.bench_{name}"
    ).comparisons()
    records = []
    for comparison in comparisons:
        records.append(record(comparison))
        print(f"  {summary(records[-1])}", flush=True)
    Path(path).write_text(json.dumps(records))


if __name__ == "__main__":
    main(*sys.argv[1:])
