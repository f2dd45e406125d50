"""The page of hits: what is on it, and that it needs nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from browsers import browser, contrast_faults, opened

from itmkit.index import Calibration, Index, build_index
from itmkit.report.page import Group, Shown, write_hits, write_page
from tests.support.pictures import ColourEncoder, save_picture


@pytest.fixture
def index(tmp_path: Path) -> Index:
    for row in range(4):
        save_picture(tmp_path / "photos" / f"<{row}>.jpg", ("red", "green")[row % 2], shade=row)
    build_index(ColourEncoder(), tmp_path / "photos", tmp_path / "index", progress=False)
    return Index(tmp_path / "index", ColourEncoder())


def test_smoke(index: Index, tmp_path: Path) -> None:
    hits = index.search("red", k=3)
    hits[2].path.unlink()
    write_hits(tmp_path / "hits.html", index, hits, "red <b>", where="size > 3")
    page = (tmp_path / "hits.html").read_text()
    assert page.count("data:image/webp;base64,") == 2
    assert "&lt;0&gt;.jpg" in page
    assert "“red &lt;b&gt;”" in page
    assert "pictures, those with size &gt; 3<" in page
    assert "cannot be read" in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)


def test_verdict(index: Index, tmp_path: Path) -> None:
    assert index.verdict(index.search("red")) == ""
    index.calibrate(Calibration((0.0, 0.0, 0.0, -4.0), 4, 0.5, 0.9, 0.8))
    hits = index.search("red")
    assert index.verdict(hits).startswith("nothing matches: no hit is right with a probability of")
    write_hits(tmp_path / "hits.html", index, hits, "red")
    assert "nothing matches" in (tmp_path / "hits.html").read_text()
    index.calibrate(Calibration((0.0, 0.0, 0.0, -4.0), 4, 0.5, 0.7, 0.01))
    assert index.verdict(hits).startswith("no hit is sure: no hit is right with a probability of")
    index.calibrate(Calibration((0.0, 0.0, 0.0, 4.0), 4, 0.5, 0.9, 0.8))
    assert index.verdict(index.search("red")) == ""


def test_marks(tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "a.jpg")
    group = Group("q", [Shown(picture, "a", mark="right"), Shown(None, "b", mark="wrong")], picture)
    write_page(tmp_path / "page.html", "title", [group])
    page = (tmp_path / "page.html").read_text()
    assert 'class="right"' in page
    assert 'class="wrong"' in page


def test_page_in_a_browser(index: Index, tmp_path: Path) -> None:
    write_hits(tmp_path / "hits.html", index, index.search("red", k=3), "red" * 40)
    with browser() as chromium:
        for scheme, width in (("light", 1280), ("dark", 390)):
            with opened(chromium, tmp_path / "hits.html", scheme=scheme, width=width) as tab:
                pictures = tab.locator("img")
                assert pictures.count() == 3
                assert all(one.evaluate("one => one.naturalWidth") > 0 for one in pictures.all())
                assert contrast_faults(tab) == []
