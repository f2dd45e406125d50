"""Draw docs/figures/app.webp: the search page of 300 scenes, as chromium shows it.

Run: itmkit fit --config mate/shapes --name demo, and then
python docs/figures/app.py runs/demo/latest; needs itmkit[app], playwright and chromium.
"""

from __future__ import annotations

import shutil
import sys
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import uvicorn
from PIL import Image
from playwright.sync_api import sync_playwright

import itmkit
from itmkit.app import SearchPage, create_app, listen
from itmkit.app.server import address_of
from itmkit.data import ShapesDataset

WORDS = "a red square is to the left of a blue cross"
COUNT = 300
WIDTH, HEIGHT = 1000, 720


def screenshot(address: str) -> Image.Image:
    """The page after a search."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        tab.goto(address)
        tab.get_by_label("Words").fill(WORDS)
        tab.keyboard.press("Enter")
        tab.get_by_text("best first").wait_for()
        tab.wait_for_load_state("networkidle")
        return Image.open(BytesIO(tab.screenshot()))


def main(run: Path) -> None:
    """Draw the scenes, index them, serve the page and look at it."""
    scenes = ShapesDataset("test", length={"train": 1, "val": 1, "test": COUNT})
    retriever = itmkit.load(run)
    with TemporaryDirectory() as name, listen("127.0.0.1", 0) as listening:
        folder = Path(name, "scenes")
        folder.mkdir()
        for row in range(COUNT):
            Image.fromarray(scenes.pixels(row)).resize((256, 256)).save(folder / f"{row:03d}.png")
        index = retriever.index(folder, Path(name, "scenes.index"))
        config = uvicorn.Config(create_app(SearchPage(index)), log_level="warning", ws="none")
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            picture = screenshot(address_of(listening))
        finally:
            server.should_exit = True
            thread.join()
    picture.save(Path(__file__).with_name("app.webp"), quality=70)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
