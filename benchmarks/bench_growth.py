"""Time and peak memory of training steps and evaluations of growing sizes, as figures too.

Every size runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import io
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from torch.nn import functional as F

from benchmarks.bench_step import BareLoop, make_batch, make_mate
from benchmarks.machine import THREADS
from benchmarks.memory import peak_megabytes
from benchmarks.report import write_whole
from benchmarks.timing import Comparison
from itmkit.data.batch import Batch
from itmkit.metrics import CrossModalRecall
from itmkit.nn import BiGRU, RegionProjection
from itmkit.retrieval import Encoding, Gallery, evaluate
from itmkit.systems import DAIM, MATE, TVRN, Matcher

REGIONS, IN_DIM, DIM, VECTOR, VOCABULARY = 16, 256, 64, 256, 1000
BATCHES = [32, 64, 128, 256, 512]
GALLERIES = [1000, 2500, 5000, 10000, 20000, 40000]
UNITS: dict[str, Literal["s", "MB"]] = {"time": "s", "memory": "MB"}
FIGURES = {"steps": "images and captions of a batch", "evaluation": "images and captions"}
FOLDER = Path(__file__).parent.parent / "docs" / "figures" / "performance"

Work = Callable[[], object]


@dataclass(frozen=True)
class Curve:
    """Something that is done at several sizes."""

    figure: str
    label: str
    make: Callable[[int], Work]
    sizes: list[int]


def comparisons() -> Iterator[Comparison]:
    """Time and memory of every size against those of the smallest; at the end, the figures."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    drawn: dict[str, list[Comparison]] = {}
    for name, curve in CURVES.items():
        smallest: tuple[list[float], list[float]] | None = None
        for size in curve.sizes:
            with context.Pool(1) as pool:
                found = pool.apply(measure, (name, size))
            smallest = smallest or found
            for place, (way, unit) in enumerate(UNITS.items()):
                one = Comparison(
                    name=f"growth.{name}_{way}.{size}",
                    work=f"{curve.label}, {FIGURES[curve.figure]} {size}",
                    against=f"the same of {curve.sizes[0]}",
                    ours=found[place],
                    theirs=smallest[place],
                    better="overhead",
                    unit=unit,
                )
                drawn.setdefault(f"{name}_{way}", []).append(one)
                yield one
    for figure in FIGURES:
        draw(figure, drawn)


def measure(name: str, size: int) -> tuple[list[float], list[float]]:
    """Seconds of up to three repetitions, and by how many MB the peak of this process grew.

    The first repetition warms up, unless it takes so long that this does not matter.
    """
    torch.set_num_threads(THREADS)
    before = peak_megabytes()
    work = CURVES[name].make(size)
    seconds: list[float] = []
    while len(seconds) < 4 and sum(seconds) < 3:
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds[1:] or seconds, [peak_megabytes() - before]


def draw(figure: str, drawn: Mapping[str, Sequence[Comparison]]) -> None:
    """Time and memory side by side, both axes logarithmic."""
    rcParams.update({"svg.fonttype": "none", "svg.hashsalt": figure, "font.size": 9})
    sheet = Figure(figsize=(8, 3.4), layout="constrained")
    panels = sheet.subplots(1, 2)
    for panel, (way, unit) in zip(panels, UNITS.items(), strict=True):
        for name, curve in CURVES.items():
            if curve.figure == figure:
                heights = [statistics.median(one.ours) for one in drawn[f"{name}_{way}"]]
                panel.plot(curve.sizes, heights, marker="o", label=curve.label.replace("`", ""))
        panel.set(xscale="log", yscale="log", xlabel=FIGURES[figure], ylabel=f"{way} ({unit})")
        sizes = [
            size for curve in CURVES.values() if curve.figure == figure for size in curve.sizes
        ]
        panel.set_xticks(sorted(set(sizes)), [f"{size:,}" for size in sorted(set(sizes))])
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    drawing = io.StringIO()
    sheet.savefig(drawing, format="svg", metadata={"Date": None})
    FOLDER.mkdir(exist_ok=True)
    write_whole(FOLDER / f"{figure}.svg", drawing.getvalue())


def _mate_step(size: int) -> Work:
    loop = BareLoop(make_mate(IN_DIM, DIM, VOCABULARY))
    batch = _batch(size, views=2)
    return lambda: loop.step(batch)


def _daim_step(size: int) -> Work:
    return _step(DAIM(RegionProjection(IN_DIM, DIM), BiGRU(VOCABULARY, 64, DIM)), size)


def _tvrn_step(size: int) -> Work:
    dim = DIM // 2
    image_encoder, text_encoder = RegionProjection(IN_DIM, dim), BiGRU(VOCABULARY, 64, dim)
    return _step(TVRN(image_encoder, text_encoder, similarity_dim=16), size)


def _step(matcher: Matcher, size: int) -> Work:
    batch, optimizer = _batch(size), torch.optim.AdamW(matcher.train().parameters())

    def work() -> None:
        optimizer.zero_grad()
        matcher.loss(batch)["loss"].backward()
        optimizer.step()

    return work


def _batch(size: int, views: int = 1) -> Batch:
    batch = make_batch(size, REGIONS, IN_DIM, views=views, vocabulary=VOCABULARY)
    batch.images.relations = torch.ones(size, REGIONS, REGIONS)
    return batch


def _evaluation(size: int) -> Work:
    matcher: MATE = make_mate(IN_DIM, VECTOR, VOCABULARY)
    image, text = _vectors(size)
    rows = torch.arange(size)
    gallery = Gallery(Encoding(vector=image), Encoding(vector=text), rows, rows, rows)
    return lambda: evaluate(matcher, gallery)


def _streaming(size: int) -> Work:
    image, text = _vectors(size)
    rows = torch.arange(size)

    def work() -> None:
        metric = CrossModalRecall()
        for part in rows.split(1000):
            metric.update(image[part], text[part], part, part, part)
        metric.compute()

    return work


def _vectors(size: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    image = torch.randn(size, VECTOR)
    return F.normalize(image, dim=1), F.normalize(image + torch.randn(size, VECTOR), dim=1)


CURVES = {
    "mate": Curve("steps", "training step of MATE", _mate_step, BATCHES),
    "daim": Curve("steps", "training step of DAIM", _daim_step, BATCHES),
    "tvrn": Curve("steps", "training step of TVRN", _tvrn_step, BATCHES),
    "evaluate": Curve("evaluation", "`evaluate`", _evaluation, GALLERIES),
    "recall": Curve("evaluation", "`CrossModalRecall`", _streaming, GALLERIES),
}
