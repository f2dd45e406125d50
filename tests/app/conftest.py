"""An index of drawn scenes and a model of one step, behind the page."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import itmkit
from itmkit.app.page import SearchPage
from itmkit.data import ShapesDataset
from tests.retriever.conftest import photos, pixel_run  # noqa: F401

COUNT = 14


@pytest.fixture(scope="session")
def search_page(
    pixel_run: Path,  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> SearchPage:
    folder = tmp_path_factory.mktemp("app")
    scenes = ShapesDataset("test", length={"train": 1, "val": 1, "test": COUNT})
    lines = ["file_name,objects"]
    (folder / "scenes").mkdir()
    for row in range(COUNT):
        Image.fromarray(scenes.pixels(row)).save(folder / f"scenes/{row:02d}.png")
        lines.append(f"{row:02d}.png,{row % 3}")
    (folder / "table.csv").write_text("\n".join(lines))
    retriever = itmkit.load(pixel_run, device="cpu")
    index = retriever.index(
        folder / "scenes", folder / "scenes.index", table=folder / "table.csv", progress=False
    )
    return SearchPage(index)
