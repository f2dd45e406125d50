"""Draws the picture of the README: what a trained run finds in the test split.

Run: make demo, then python docs/figures/search.py runs/demo/latest
"""

from __future__ import annotations

import base64
import io
import sys
from html import escape
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from itmkit.data import Images, ShapesDataset
from itmkit.retrieval import best_captions, best_images, encode, evaluating
from itmkit.systems import load_run

RIGHT, WRONG, INK = "#15803d", "#b91c1c", "#0f172a"
SIDE, GAP, LINE = 116, 12, 22
CAPTIONS, SCENES = (0, 1003), (4, 30)  # queries, the first that come to mind


def thumbnail(pixels: np.ndarray, x: int, y: int, colour: str) -> str:
    """A picture ``(H, W, 3)`` uint8 with a frame."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    place = f'x="{x}" y="{y}" width="{SIDE}" height="{SIDE}"'
    return (
        f'<image {place} href="data:image/png;base64,{data}"/>'
        f'<rect {place} fill="none" stroke="{colour}" stroke-width="4"/>'
    )


def words(x: int, y: int, text: str, colour: str = INK, weight: int = 400) -> str:
    """A line of text."""
    style = f'font-size="14" font-weight="{weight}" fill="{colour}"'
    return f'<text x="{x}" y="{y}" {style}>{escape(text)}</text>'


def colour_of(dataset: ShapesDataset, scene: int, caption: int) -> str:
    """Green where the caption is true of the scene."""
    true = dataset.relevance(torch.tensor([scene]), torch.tensor([caption]))[0, 0]
    return RIGHT if true else WRONG


def draw(folder: Path) -> str:
    """The picture, as SVG."""
    model, data = load_run(folder)
    dataset, parts, y = data.split("test"), [], 24
    assert isinstance(dataset, ShapesDataset)
    gallery = encode(model, data.test_dataloader())
    with evaluating(model):
        for caption in CAPTIONS:
            row = int((gallery.text_ids == caption).nonzero())
            _, found = best_images(model, gallery.texts[[row]], gallery.images, k=7)
            parts.append(words(0, y, f"“{dataset.captions[caption]}”", weight=600))
            for place, scene in enumerate(gallery.image_ids[found[0]].tolist()):
                colour = colour_of(dataset, scene, caption)
                x = place * (SIDE + GAP) + 2
                parts.append(thumbnail(dataset.pixels(scene), x, y + 12, colour))
            y += SIDE + 56
        for scene in SCENES:
            image = model.encode_image(Images(dataset.image(scene)[None]))
            _, rows = best_captions(model, image, gallery.texts, k=5)
            parts.append(thumbnail(dataset.pixels(scene), 2, y - 10, INK))
            for place, caption in enumerate(gallery.text_ids[rows[0]].tolist()):
                colour = colour_of(dataset, scene, caption)
                text = dataset.captions[caption]
                parts.append(words(SIDE + 2 * GAP, y + 8 + place * LINE, text, colour))
            y += SIDE + 24
    width = 7 * (SIDE + GAP)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 0 {width + 10} {y}" '
        'font-family="Helvetica, Arial, sans-serif"><rect x="-10" width="100%" height="100%" '
        f'fill="white"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    path = Path(__file__).parent / "readme/search.svg"
    path.write_text(draw(Path(sys.argv[1])), encoding="utf-8")
    print(path)
