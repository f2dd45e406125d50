"""Charts of a report, as SVG."""

from __future__ import annotations

import re

import pytest

from itmkit.report import charts

pytestmark = pytest.mark.extras
pytest.importorskip("matplotlib", reason="needs itmkit[report]")


def curve(*steps: int) -> str:
    values = [float(row) for row in range(len(steps))]
    return charts.lines("k", "Loss", {"loss": (steps, values)}, x="step", y="")


def test_values_of_one_step_are_points() -> None:
    """A run of one validation: the untrained value and the trained one may be of one step."""
    points = [
        len(re.findall(r"<use [^>]*var\(--c1\)", curve(*steps))) for steps in ((3, 3), (3, 4))
    ]
    assert points[0] > points[1]


def test_steps_are_whole() -> None:
    for steps in ((0, 0), (0, 1, 2), (10, 20)):
        ticks = re.findall(r"<text[^>]*>(-?[\d.−]+)</text>", curve(*steps))
        assert ticks
        assert all("." not in tick for tick in ticks[: len(set(steps))])
