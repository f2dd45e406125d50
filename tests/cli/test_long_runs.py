"""Runs of many steps: memory and open files stay what they were.

``ITMKIT_LONG_STEPS`` sets how many (2,000).
"""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from commands import Command
from tiny_runs import write_config

STEPS = int(os.environ.get("ITMKIT_LONG_STEPS", "2000"))
TABLE = "runs/tiny/latest/metrics.csv"
PAGE = os.sysconf("SC_PAGE_SIZE")


class Sample(NamedTuple):
    """What a process and its children hold."""

    steps: int
    megabytes: float
    child_megabytes: float
    files: int
    children: int


def sample(command: Command, table: Path) -> Sample:
    process = Path(f"/proc/{command.pid}")
    tasks = [task / "children" for task in (process / "task").iterdir()]
    children = [Path("/proc", word) for task in tasks for word in task.read_text().split()]
    resident = [int((one / "statm").read_text().split()[1]) for one in (process, *children)]
    sizes = [pages * PAGE / 2**20 for pages in resident]
    files = len(list((process / "fd").iterdir()))
    return Sample(steps_in(table), sizes[0], sum(sizes[1:]), files, len(children))


def steps_in(table: Path) -> int:
    with open(table, newline="") as file:
        return 1 + max(int(row["step"]) for row in csv.DictReader(file))


@pytest.mark.long
@pytest.mark.parametrize("system", ["MATE", "DAIM", "TVRN"])
def test_memory_and_open_files_stay_flat(tmp_path: Path, system: str) -> None:
    """Two persistent workers each for training and validation, a checkpoint every tenth step."""
    folder = tmp_path / "run"
    write_config(
        folder,
        system,
        train=28,
        max_steps=STEPS,
        max_epochs=-1,
        check_val_every_n_epoch=3,
        log_every_n_steps=10,
    )
    words = ("--data.num_workers=2", "--last.every_n_train_steps=10")
    command = Command(folder, "fit", "--config=tiny.yaml", *words)
    samples: list[Sample] = []
    while command.process.is_alive():
        time.sleep(0.5)
        try:
            samples.append(sample(command, folder / TABLE))
        except (OSError, ValueError):  # not yet begun, or just ended
            continue
    ended = command.end()
    assert ended.code == 0, ended.err
    assert steps_in(folder / TABLE) == STEPS

    later = [one for one in samples if STEPS / 2 <= one.steps < STEPS]
    assert len(later) >= 5
    steps = [one.steps / 1000 for one in later]
    slope = np.polyfit(steps, [one.megabytes for one in later], 1)[0]
    # MATE's bank of hubs is filled before a validation, by two more workers that end with it.
    usual = [one for one in later if one.children == 4]
    child_slope = np.polyfit(
        [one.steps / 1000 for one in usual], [one.child_megabytes for one in usual], 1
    )[0]
    files = [one.files for one in later]
    print(
        f"{system}: {len(later)} samples, {later[0].megabytes:.0f} MB, slope {slope:+.2f} MB per "
        f"1,000 steps (workers {child_slope:+.2f}); open files {min(files)}-{max(files)}; workers "
        f"{max(one.children for one in later)}; {ended.seconds:.0f} s"
    )
    most = 6 if system == "MATE" else 4
    assert all(4 <= one.children <= most for one in later)
    assert len(usual) >= len(later) / 2
    # Each batch that waits for training has files of its own for a moment; a handle that a
    # validation or a checkpoint keeps would be tens or hundreds at the end.
    half = len(files) // 2
    assert abs(np.median(files[half:]) - np.median(files[:half])) <= 4
    if STEPS >= 1000:  # the slope of a shorter run is that of its start
        assert abs(slope) < 5
        assert abs(child_slope) < 5
