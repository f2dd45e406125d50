"""Charts as inline SVG, in the colours of the page: light or dark is the reader's choice."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#0a0b0c"
#: Okabe and Ito's colours, which the page has a variable for; it changes them in the dark
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "itmkit",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
} | dict.fromkeys(
    "text.color axes.edgecolor axes.labelcolor xtick.color ytick.color grid.color".split(), _INK
)


class Chart:
    """A figure that becomes SVG.

    Args:
        key: of the page's charts, unique.
        label: what a screen reader says.
    """

    def __init__(self, key: str, label: str) -> None:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        self.key, self.label = key, label
        self._context = rc_context
        with rc_context(_STYLE):
            self.figure = Figure(figsize=(4.4, 2.6), layout="constrained")
            self.axes: Axes = self.figure.subplots()

    def svg(self, *, x: str = "", y: str = "", legend: bool = True) -> str:
        """The chart, with its axes named."""
        buffer = io.StringIO()
        with self._context(_STYLE):
            self.axes.set(xlabel=x, ylabel=y)
            if legend and self.axes.get_legend_handles_labels()[0]:
                self.axes.legend(fontsize=8)
            none = dict.fromkeys(("Date", "Creator", "Format", "Type"))
            self.figure.savefig(buffer, format="svg", transparent=True, metadata=none)
        text = buffer.getvalue()
        text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
        text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
        for prefix in ('id="', 'href="#', "url(#"):
            text = text.replace(prefix, f"{prefix}{self.key}-")
        for number, colour in enumerate(COLOURS, 1):
            text = text.replace(colour, f"var(--c{number})")
        text = text.replace(_INK, "currentColor")
        label = self.label.replace("&", "and").replace('"', "'").replace("<", "less than ")
        return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def lines(
    key: str,
    label: str,
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x: str,
    y: str,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Curves by name, each of its whole x and of its y values."""
    from matplotlib.ticker import MaxNLocator

    chart = Chart(key, label)
    chart.axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    for number, (name, (steps, values)) in enumerate(curves.items()):
        style = "-" if number < len(COLOURS) else "--"
        few = "o" if len(set(steps)) == 1 else None  # no line would be seen
        colour = COLOURS[number % len(COLOURS)]
        chart.axes.plot(steps, values, style, marker=few, color=colour, label=name, linewidth=1.5)
    if log_x:
        chart.axes.set_xscale("log")
    if log_y:
        chart.axes.set_yscale("log")
    return chart.svg(x=x, y=y)


def histograms(
    key: str, label: str, values: Mapping[str, Any], *, x: str, y: str, bins: Any = 40
) -> str:
    """Histograms by name, over each other."""
    chart = Chart(key, label)
    arrays = {name: np.asarray(own, dtype=float) for name, own in values.items()}
    everything = np.concatenate([own for own in arrays.values() if len(own)] or [np.zeros(1)])
    edges = np.histogram_bin_edges(everything, bins)
    for colour, (name, own) in zip(COLOURS, arrays.items(), strict=False):
        chart.axes.hist(own, edges.tolist(), color=colour, alpha=0.55, label=name)
    return chart.svg(x=x, y=y)


def reliability(key: str, label: str, bins: Sequence[tuple[float, float, int]]) -> str:
    """Share of hits that were right, against the probability that was estimated."""
    chart = Chart(key, label)
    chart.axes.plot([0, 1], [0, 1], "--", color=_INK, alpha=0.4, linewidth=1)
    estimated, right, counts = zip(*bins, strict=True) if bins else ((), (), ())
    most = max(counts, default=1)
    sizes = [12 + 120 * count / most for count in counts]
    chart.axes.plot(estimated, right, color=COLOURS[0], linewidth=1)
    chart.axes.scatter(estimated, right, sizes, color=COLOURS[0])
    chart.axes.set(xlim=(0, 1), ylim=(0, 1))
    return chart.svg(x="estimated probability", y="share that was right")
