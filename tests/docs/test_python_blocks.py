"""The Python of README and the pages is run: the blocks of a page in order, as one script."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from clip_models import save_clip
from doc_pages import PAGES, ROOT, blocks
from fork_server import start
from pictures import save_picture

from itmkit.cli import main
from tests.retriever.conftest import photos, pixel_run  # noqa: F401

HUB_MODEL = "google/siglip2-base-patch16-224"
#: what blocks of a page take from their reader
BEFORE = {
    "docs/evaluation.md": """
import torch
from itmkit.data import ImageTextData, ShapesDataset
from itmkit.metrics import PROTOCOLS, Protocol
from itmkit.nn import BiGRU, RegionProjection
from itmkit.systems import DAIM

PROTOCOLS["coco-1k"] = Protocol(folds=5, images=15, captions_per_image=5)
data = ImageTextData(lambda split: ShapesDataset(split, length=15, regions=True), batch_size=5)
loader = data.test_dataloader()
matcher = DAIM(RegionProjection(437, 16, hidden_dim=16), BiGRU(64, 16, 16))
pairs = torch.stack([torch.arange(15), torch.arange(0, 75, 5)], 1)
grades = torch.ones(15)
image, text = torch.randn(100, 8), torch.randn(100, 8)
image_ids = text_image_ids = text_ids = torch.arange(100)
images = texts = torch.randn(100, 8)
model = torch.nn.Identity()
""",
    "docs/sharing.md": """
import os
from pathlib import Path

import itmkit
from huggingface_hub import constants
from local_hub import TOKEN, hub_constants, local_hub, tag

serving = local_hub(Path("hub"))
for name, value in hub_constants(serving.__enter__(), Path("cache")).items():
    setattr(constants, name, value)
os.environ["HF_TOKEN"] = TOKEN
itmkit.load("mine").push_to_hub("me/mine", private=True)
tag(Path("hub"), "me/mine", "v1")
""",
    "docs/report.md": """
import itmkit

retriever = itmkit.load("mine")
""",
    "docs/picture_search.md": """
import torch

measured, right = torch.randn(200, 8), torch.rand(200, 8) > 0.5
""",
}
RUN_NEEDED = ("README.md", "docs/picture_search.md", "docs/report.md", "docs/sharing.md")
PYTHON = {name: found for name, page in PAGES.items() if (found := blocks(page, "python"))}


@pytest.fixture
def reader(
    tmp_path: Path,
    pixel_run: Path,  # noqa: F811
    photos: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], Path]:
    """Make the folder of a reader of a page: pictures, runs, models."""

    def folder(page: str) -> Path:
        monkeypatch.chdir(tmp_path)
        for name in ("a", "b", "beach"):
            save_picture(tmp_path / f"{name}.jpg")
        if page in RUN_NEEDED:
            shutil.copytree(pixel_run.parent.parent, tmp_path / "runs", symlinks=True)
            shutil.copytree(photos / "images", tmp_path / "photos")
        if page == "README.md":
            main(["index", "photos", "--model", "mine"])
            few = ["--data.dataset.length={train: 12, val: 8, test: 8}", "--data.batch_size=12"]
            main(["fit", "--config=mate/shapes", "--name=demo", "--trainer.max_steps=1", *few])
        if page == "docs/dual_encoder.md":
            save_clip(tmp_path / HUB_MODEL)  # a folder of that name goes before the hub
        return tmp_path

    return folder


@pytest.mark.parametrize("name", PYTHON)
def test_python_of_a_page_runs(name: str, reader: Callable[[str], Path]) -> None:
    if name == "docs/report.md":
        pytest.importorskip("matplotlib", reason="needs itmkit[report]")
    folder = reader(name)
    scripts = []
    for number, block in enumerate([BEFORE.get(name, ""), *PYTHON[name]]):
        scripts.append(folder / f"block_{number}.py")
        scripts[-1].write_text(block)
    process = start(_run, folder, scripts, out="out", err="err", environment={})
    process.join(120)
    assert process.exitcode == 0, Path("err").read_text()


def _run(folder: Path, scripts: list[Path]) -> None:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    known: dict[str, object] = {}
    for script in scripts:
        known = runpy.run_path(str(script), known, run_name="__main__")
        known = {name: value for name, value in known.items() if not name.startswith("__")}


def test_pages_with_python_are_known() -> None:
    assert {"README.md", "docs/extend.md", "docs/losses.md"} <= PYTHON.keys()
    assert BEFORE.keys() <= PYTHON.keys()
    assert (ROOT / "README.md").is_file()
