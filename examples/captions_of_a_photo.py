"""A trained model, loaded: its recall, and the best captions of one picture.

Run: make demo, then python examples/captions_of_a_photo.py runs/demo/latest
"""

import sys
from pathlib import Path

import torch

from itmkit.data import Images
from itmkit.retrieval import best_captions, encode, evaluate, evaluating
from itmkit.systems import load_run


def main(folder: str) -> None:
    model, data = load_run(Path(folder))
    dataset = data.split("test")
    gallery = encode(model, data.test_dataloader())
    relevance = dataset.relevance(gallery.image_ids, gallery.text_ids)
    print(f"rSum {evaluate(model, gallery, relevance=relevance)['rsum']:.1f}")

    photo = Images(torch.stack([dataset.image(0)]))
    with evaluating(model):
        scores, rows = best_captions(model, model.encode_image(photo), gallery.texts, k=5)
    for score, row in zip(scores[0].tolist(), rows[0].tolist(), strict=True):
        print(f"{score:.3f}  {dataset.captions[int(gallery.text_ids[row])]}")


if __name__ == "__main__":
    main(sys.argv[1])
