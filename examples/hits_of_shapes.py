"""A page of what a run on the built-in scenes finds, right and wrong.

Run: make demo, or itmkit fit --config mate/shapes and then
python examples/hits_of_shapes.py runs/mate-shapes/latest
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from itmkit.data import ShapesDataset
from itmkit.report.page import Group, Shown, write_page
from itmkit.retrieval import best_captions, best_images, encode
from itmkit.systems import load_run

QUERIES, HITS = 10, 6


def main(run: Path) -> Path:
    """Write the page into the folder of the run."""
    model, data = load_run(run)
    dataset = data.split("test")
    if not isinstance(dataset, ShapesDataset):
        raise SystemExit(f"{run} is not a run on the built-in scenes")
    gallery = encode(model, data.test_dataloader())
    step = max(1, len(gallery.texts) // QUERIES)
    captions = torch.arange(0, len(gallery.texts), step)[:QUERIES]
    _, scenes = best_images(model, gallery.texts[captions], gallery.images, HITS)
    own = torch.arange(0, len(gallery.images), max(1, len(gallery.images) // QUERIES))[:QUERIES]
    _, sentences = best_captions(model, gallery.images[own], gallery.texts, HITS)

    def mark(scene: int, caption: int) -> Literal["right", "wrong"]:
        true = dataset.relevance(torch.tensor([scene]), torch.tensor([caption])).item()
        return "right" if true else "wrong"

    def shown(scene: int, caption: int) -> Shown:
        picture = Image.fromarray(dataset.pixels(scene))
        return Shown(picture, dataset.names[scene], mark=mark(scene, caption))

    groups = [
        Group(
            f"“{dataset.captions[caption]}”",
            [shown(scene, caption) for scene in gallery.image_ids[found].tolist()],
        )
        for caption, found in zip(gallery.text_ids[captions].tolist(), scenes, strict=True)
    ]
    for scene, found in zip(gallery.image_ids[own].tolist(), sentences, strict=True):
        lines = [
            Shown(None, dataset.captions[caption], mark=mark(scene, caption))
            for caption in gallery.text_ids[found].tolist()
        ]
        picture = Image.fromarray(dataset.pixels(scene))
        groups.append(Group(f"Captions found for {dataset.names[scene]}", lines, picture, True))
    path = run / "hits.html"
    note = (
        f"Searched among {len(gallery.images):,} scenes and {len(gallery.texts):,} captions that "
        "the model has not seen. Green is right, red is wrong."
    )
    write_page(path, f"What {type(model).__name__} finds", groups, note=note)
    return path


if __name__ == "__main__":
    print(f"page: {main(Path(sys.argv[1]).resolve())}")
