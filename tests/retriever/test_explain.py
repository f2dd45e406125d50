"""A run on photos says why a picture and a sentence have their score."""

from __future__ import annotations

from pathlib import Path

import pytest

import itmkit

pytestmark = pytest.mark.extras
pytest.importorskip("matplotlib", reason="needs itmkit[report]")


def test_run_on_photos_is_explained(pixel_run: Path, photos: Path) -> None:
    from matplotlib.figure import Figure

    own = itmkit.load(pixel_run, device="cpu")
    path = sorted((photos / "images").iterdir())[0]
    found = own.explanations(path, "a dog")
    assert [one.kind for one in found] == ["shares", "attention"]  # MATE with its fusion
    figure, axes = own.explain(path, "a dog", figure=Figure(layout="constrained"))
    assert axes.shape == (2, 5)
    drawn = [part.get_suptitle() for part in figure.subfigs]
    assert "add up to it" in drawn[0].replace("\n", " ")
    assert "not a share of the score" in drawn[1].replace("\n", " ")
