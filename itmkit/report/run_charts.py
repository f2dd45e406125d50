"""The charts of a run's report: its training, and its ranks and scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from itmkit.checks import InputError
from itmkit.index import Calibration
from itmkit.metrics.query_ranks import chance_recall
from itmkit.report import charts
from itmkit.report.evaluated import EvaluatedRun, curves_of

_LEVELS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)


def training_charts(own: EvaluatedRun, second: EvaluatedRun | None) -> list[dict[str, str]]:
    """Curves of the training, as titles and SVG; the first of each beside that of a second run."""
    found = curves_of(own.folder)
    theirs = {} if second is None else curves_of(second.folder)
    drawn = []

    def add(title: str, names: list[str], key: str) -> None:
        curves: dict[str, Any] = {
            name.removeprefix("train/").removeprefix("val/"): found[name]
            for name in names
            if name in found
        }
        for name in names[:1]:
            if curves and name in theirs:
                curves[f"{name.partition('/')[2]} of the second run"] = theirs[name]
        if curves:
            values = [value for _, (_, own) in curves.items() for value in own]
            log = key == "loss" and min(values) > 0 and max(values) > 50 * min(values)
            svg = charts.lines(key, title, curves, x="step", y="", log_y=log)
            drawn.append({"title": title, "svg": svg})

    terms = sorted(name for name in found if name.startswith("train/"))
    losses = [name for name in terms if name not in ("train/margin", "train/loss")]
    add("Loss and its terms", ["train/loss", *losses], "loss")
    add("Adaptive margin", ["train/margin"], "margin")
    add("rSum on the validation split", ["val/rsum"], "rsum")
    add("R@1 on the validation split", ["val/i2t_r1", "val/t2i_r1"], "r1")
    return drawn


def score_charts(own: EvaluatedRun) -> list[dict[str, str]]:
    """Recall at K, ranks, scores, hubs and calibration, as titles, notes and SVG."""
    images, captions = own.query_ranks
    sides = {"image to text": images[images >= 0], "text to image": captions}
    n, m = own.relevant.shape
    levels = [k for k in _LEVELS if k <= max(n, m)]
    recall: dict[str, Any] = {
        name: (levels, [100 * float((ranks < k).float().mean()) for k in levels])
        for name, ranks in sides.items()
    }
    matches = own.relevant.sum(0).tolist()
    by_chance = [chance_recall(matches, n, k) for k in levels]
    recall["text to image by chance"] = (levels, by_chance)
    found = [
        {
            "title": "Recall at K",
            "note": "All images and captions searched together.",
            "svg": charts.lines("recall", "Recall at K", recall, x="K", y="%", log_x=True),
        }
    ]
    edges = [1, 2, 4, 6, 11, 21, 51, 101, 201, 501, 1001, 5001, max(5002, n, m) + 1]
    edges = [edge for edge in edges if edge <= max(n, m) + 1] or [1, 2]
    labels = [f"{a}" if b == a + 1 else f"{a}–{b - 1}" for a, b in itertools.pairwise(edges)]
    found.append(
        {
            "title": "Ranks of the right answer",
            "note": "Share of the queries; rank 1 is the first place.",
            "svg": _rank_bars(sides, edges, labels),
        }
    )
    right_texts, wrong_texts = own.positives[1], own.negatives[1]
    real = right_texts.isfinite() & wrong_texts.isfinite()
    found.append(
        {
            "title": "Scores of captions",
            "note": "With their best right image and with the wrong image that scores highest.",
            "svg": charts.histograms(
                "scores",
                "Scores of right pairs and of hardest wrong ones",
                {"right": right_texts[real], "hardest wrong": wrong_texts[real]},
                x="score",
                y="captions",
            ),
        }
    )
    counts = top_counts(own.table.scores, dim=0)
    mean = float(counts.float().mean())
    centred = counts.double() - counts.double().mean()
    skew = float(centred.pow(3).mean() / centred.square().mean().clamp(min=1e-12).pow(1.5))
    found.append(
        {
            "title": "How often an image is among the first 10",
            "note": f"Of all captions; the mean is {mean:.1f}, the skewness {skew:.2f}: the "
            "larger, the more a few images are found for everything.",
            "svg": charts.histograms(
                "hubs", "Hubness", {"images": counts}, x="captions", y="images", bins=30
            ),
        }
    )
    try:
        calibration = Calibration.fit(own.table.scores.T, own.relevant.T)
    except InputError:
        return found
    return [
        *found,
        {
            "title": "Calibration",
            "note": "Probabilities that a logistic regression gives hits, learnt on half of the "
            "captions and judged on the others; on the line they are right.",
            "svg": charts.reliability("reliability", "Calibration", calibration.reliability),
        },
    ]


def _rank_bars(sides: Mapping[str, Tensor], edges: list[int], labels: list[str]) -> str:
    chart = charts.Chart("ranks", "Ranks of the right answer")
    places = np.arange(len(labels))
    for number, (name, ranks) in enumerate(sides.items()):
        counts, _ = np.histogram(ranks.numpy() + 1, edges)
        shares = 100 * counts / max(1, len(ranks))
        offset = 0.4 * number - 0.2
        chart.axes.bar(places + offset, shares, 0.38, color=charts.COLOURS[number], label=name)
    chart.axes.set_xticks(places, labels, fontsize=8, rotation=40, ha="right")
    return chart.svg(x="rank", y="%")


def top_counts(scores: Tensor, *, dim: int) -> Tensor:
    """How often every item is among the first ten of the queries of the other side."""
    top = scores.topk(min(10, scores.shape[dim]), dim=dim).indices
    return top.flatten().bincount(minlength=scores.shape[dim])
