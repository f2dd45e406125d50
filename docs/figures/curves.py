"""Draws learning curves of runs: rSum on the validation split, by training step.

Run: python docs/figures/curves.py runs/mate/latest runs/daim/latest runs/tvrn/latest
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from itmkit.report.evaluated import curves_of

matplotlib.rcParams.update({"svg.hashsalt": "itmkit", "svg.fonttype": "none", "font.size": 9})
OUTPUT = Path(__file__).parent / "results" / "curves.svg"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


def main(runs: list[Path]) -> None:
    """Draw the runs, each under the name of the folder that it is in, and print the numbers."""
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axes = figure.subplots()
    for run, colour in zip(runs, COLOURS, strict=False):
        steps, values = curves_of(run)["val/rsum"]
        name = run.absolute().parent.name
        print(
            name, *(f"{step + 1}: {value:.1f}" for step, value in zip(steps, values, strict=True))
        )
        axes.plot(steps, values, marker="o", ms=3, color=colour, label=name)
    axes.set(xlabel="training step", ylabel="rSum on the validation split", ylim=(0, None))
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, loc="lower right")
    OUTPUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUTPUT, format="svg", facecolor="white", metadata={"Date": None})
    print(OUTPUT)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
