"""The figures of the docs are what their script draws."""

from __future__ import annotations

import json
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch

from itmkit.index import Calibration

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


@pytest.mark.extras
def test_reliability_counts_hits_with_and_without_right_images(tmp_path):
    pytest.importorskip("matplotlib", reason="needs itmkit[report]")
    script = runpy.run_path(str(FOLDER / "reliability.py"))
    calibration = Calibration((1.0, 0.0, 0.0, 0.0), 12, 0.5, 0.5, 0.5)  # the sigmoid of the score
    scores = torch.arange(24.0).view(2, 12) - 12
    right = torch.zeros(2, 12, dtype=torch.bool)
    right[:, -1] = True  # the best of each
    probabilities, truth = script["judged"](calibration, scores, right)
    torch.testing.assert_close(probabilities[0], scores[0].flip(0)[:10].sigmoid())
    torch.testing.assert_close(probabilities[2], scores[0].flip(0)[1:11].sigmoid())
    assert truth.nonzero().tolist() == [[0, 0], [1, 0]]
    bins = script["tenths"](torch.tensor([0.11, 0.19, 0.95, 1.0]), torch.tensor([1, 0, 1, 1]) > 0)
    assert [(share, count) for _, share, _, count in bins] == [(0.5, 2), (1.0, 2)]
    script["draw"]({"best hit of a query": bins}, tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")


@pytest.mark.extras
def test_learning_curves_are_of_all_seeds_of_a_system(tmp_path):
    pytest.importorskip("matplotlib", reason="needs itmkit[report]")
    script = runpy.run_path(str(FOLDER / "learning_curves.py"))
    for seed, end in enumerate((300.0, 302.0)):
        folder = tmp_path / f"mate{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text("model: {class_path: itmkit.systems.MATE}")
        rows = ["step,train/loss,val/rsum", "0,,2.0", "9,7.5,", "9,,250.0", f"19,,{end}"]
        (folder / "metrics.csv").write_text("\n".join(rows) + "\n")
        recalls = {f"val/{name}": end / 6 for name in script["COLUMNS"]} | {"val/rsum": end}
        (folder / "metrics.json").write_text(json.dumps(recalls))
    systems = script["by_system"]([str(tmp_path / f"mate{seed}") for seed in range(2)])
    assert [script["curve"](folder) for folder in systems["MATE"]] == [
        {10: 250.0, 20: 300.0},
        {10: 250.0, 20: 302.0},
    ]
    assert "| MATE | 2 | 50.2 ± 0.2 |" in script["table"](systems)
    assert script["table"](systems).endswith("| 301.0 ± 1.0 |")
    lines = script["figure"](systems).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[250.0, 301.0]]
