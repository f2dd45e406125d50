"""Draws how often hits are right against the probabilities that they got: on the test split of a
run, with probabilities learnt on its validation split.

Run: make demo, then python docs/figures/reliability.py runs/demo/latest
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from itmkit.index.calibration import HITS, Calibration
from itmkit.retrieval import encode, score_matrix
from itmkit.retriever.calibrate import calibration_of_run
from itmkit.systems import load_run

matplotlib.rcParams.update({"svg.hashsalt": "itmkit", "svg.fonttype": "none", "font.size": 9})
BINS = 10
COLOURS = {"ten best hits of a query": "#0072b2", "best hit of a query": "#d55e00"}


def test_scores(folder: Path) -> tuple[Tensor, Tensor]:
    """Scores ``(q, n)`` of captions and images of the test split, and which images are right."""
    model, data = load_run(folder)
    gallery = encode(model, data.test_dataloader())
    scores = score_matrix(model, gallery.images, gallery.texts).T
    relevance = getattr(data.split("test"), "relevance", None)
    right = None if relevance is None else relevance(gallery.image_ids, gallery.text_ids)
    if right is None:
        right = gallery.image_ids[:, None] == gallery.text_image_ids
    return scores, right.T


def judged(calibration: Calibration, scores: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities ``(2q, k)`` of the best hits, and whether these are right.

    Each query is searched with its right images in the gallery, and without.
    """
    probabilities, truth = [], []
    for offered in (scores, scores.masked_fill(right, -torch.inf)):
        best = offered.topk(HITS, dim=1)
        probabilities += [calibration.probabilities(values) for values in best.values]
        truth.append(right.gather(1, best.indices) & best.values.isfinite())
    return torch.stack(probabilities), torch.cat(truth)


def tenths(probabilities: Tensor, right: Tensor) -> list[tuple[float, float, float, int]]:
    """By tenth of the probability: its mean, the share that was right, its 95 % interval as a half
    width, and the number of hits.
    """
    tenth = (probabilities * BINS).long().clamp(max=BINS - 1)
    bins = []
    for place in range(BINS):
        own = tenth == place
        if count := int(own.sum()):
            share = float(right[own].double().mean())
            width = 1.96 * (share * (1 - share) / count) ** 0.5
            bins.append((float(probabilities[own].mean()), share, width, count))
    return bins


def draw(curves: dict[str, list[tuple[float, float, float, int]]], path: Path) -> None:
    """Both curves beside the diagonal, as SVG."""
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], "--", color="#64748b", linewidth=1)
    for label, bins in curves.items():
        estimated, share, width, _ = np.array(bins).T
        axes.errorbar(estimated, share, width, marker="o", ms=4, color=COLOURS[label], label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="estimated probability", ylabel="share right")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


def main(folder: Path) -> None:
    """Measure, print the numbers, and draw."""
    calibration = calibration_of_run(folder)
    probabilities, right = judged(calibration, *test_scores(folder))
    curves = {
        "ten best hits of a query": tenths(probabilities.flatten(), right.flatten()),
        "best hit of a query": tenths(probabilities[:, 0], right[:, 0]),
    }
    for label, bins in curves.items():
        print(label)
        for estimated, share, width, count in bins:
            print(f"  {estimated:.3f}  {share:.3f} ± {width:.3f}  {count}")
    above = probabilities[:, 0] >= calibration.threshold
    found = above[: len(above) // 2]
    print(
        f"at {calibration.threshold:.0%}: {right[above, 0].double().mean():.1%} of the best hits "
        f"above it right, {found.double().mean():.1%} of findable queries above it; said on the "
        f"validation split: {calibration.precision:.1%}, {calibration.coverage:.1%}"
    )
    path = Path(__file__).parent / "picture_search/reliability.svg"
    draw(curves, path)
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
