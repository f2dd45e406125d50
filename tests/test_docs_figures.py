"""The figures of the docs are what their script draws."""

from __future__ import annotations

import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
SCRIPT = runpy.run_path(str(FOLDER / "draw.py"))


def test_every_figure_has_its_page():
    names = {path.stem for path in FOLDER.glob("*.svg")}
    assert names == set(SCRIPT["FIGURES"])
    for name in names:
        page = (FOLDER.parent / f"{name}.md").read_text(encoding="utf-8")
        assert f"(figures/{name}.svg)" in page


@pytest.mark.parametrize("name", sorted(SCRIPT["FIGURES"]))
def test_script_draws_the_committed_figure(name):
    drawn = SCRIPT["FIGURES"][name]().svg()
    assert drawn.encode() == (FOLDER / f"{name}.svg").read_bytes(), "run docs/figures/draw.py"
    assert ElementTree.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"


def test_error_of_a_text_wider_than_its_box():
    figure = SCRIPT["Figure"]("a figure", 600, 100)
    with pytest.raises(ValueError, match="'a text too long' is wider than its box of 60"):
        figure.box("image", 10, 10, 60, "short | a text too long")


def test_error_of_words_outside_of_the_sheet():
    figure = SCRIPT["Figure"]("a figure", 600, 100)
    with pytest.raises(ValueError, match="'far right' leaves the sheet"):
        figure.words(590, 50, "far right")
