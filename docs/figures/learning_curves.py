"""Recall of some runs by step, and at their end as a Markdown table; runs of one system together.

Run: python docs/figures/learning_curves.py runs/mate0 runs/mate1 runs/daim0 …
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from matplotlib.figure import Figure

from benchmarks.report import mean_and_range
from itmkit.systems import find_run

matplotlib.rcParams.update({"svg.hashsalt": "itmkit", "svg.fonttype": "none", "font.size": 9})
TARGET = Path(__file__).parent / "results" / "learning_curves.svg"
COLOURS = {"MATE": "#0072b2", "DAIM": "#d55e00", "TVRN": "#009e73"}
COLUMNS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")


def by_system(folders: Sequence[str]) -> dict[str, list[Path]]:
    """The run folders of each system."""
    found: dict[str, list[Path]] = defaultdict(list)
    for folder in map(find_run, folders):
        config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text())
        found[config["model"]["class_path"].rsplit(".", 1)[-1]].append(folder)
    return found


def curve(folder: Path) -> dict[int, float]:
    """The rSum of every validation after the first step, by optimizer step."""
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/rsum"]]
    return {int(row["step"]) + 1: float(row["val/rsum"]) for row in rows if int(row["step"])}


def table(systems: dict[str, list[Path]]) -> str:
    """Recall at the end of the runs."""
    lines = [f"| | seeds | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 2) + "|"]
    for system, folders in systems.items():
        ends = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
        cells = [mean_and_range([end[f"val/{name}"] for end in ends]) for name in COLUMNS]
        lines.append(f"| {system} | {len(ends)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def figure(systems: dict[str, list[Path]]) -> Figure:
    """A line for the mean of each system, and a band for the range of its seeds."""
    drawn = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = drawn.subplots()
    for system, folders in systems.items():
        curves = [curve(folder) for folder in folders]
        steps = sorted(set.intersection(*map(set, curves)))
        values = [[own[step] for own in curves] for step in steps]
        colour = COLOURS.get(system)
        axes.plot(steps, list(map(statistics.mean, values)), marker="o", color=colour, label=system)
        axes.fill_between(
            steps, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.2, lw=0
        )
    axes.set(xlabel="optimizer steps", ylabel="rSum on the validation photos")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return drawn


if __name__ == "__main__":
    found = by_system(sys.argv[1:])
    print(table(found))
    TARGET.parent.mkdir(exist_ok=True)
    figure(found).savefig(TARGET, metadata={"Date": None})
