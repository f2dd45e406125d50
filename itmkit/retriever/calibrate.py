"""Probabilities of hits, learnt from the validation split of a run."""

from __future__ import annotations

from pathlib import Path

from itmkit.index import Calibration
from itmkit.retrieval import encode, score_matrix
from itmkit.systems import load_run


def calibration_of_run(run: str | Path) -> Calibration:
    """Learn probabilities from the captions and images that a run validates on.

    Args:
        run: folder of the run.

    Raises:
        FileNotFoundError: if its data are no longer there.
        InputError: if it has no validation split, or too few captions.
    """
    model, data = load_run(run)
    loader = data.val_dataloader()
    gallery = encode(model, loader)
    scores = score_matrix(model, gallery.images, gallery.texts).T
    relevance = getattr(getattr(loader, "dataset", None), "relevance", None)
    right = None if relevance is None else relevance(gallery.image_ids, gallery.text_ids)
    if right is None:
        right = gallery.image_ids[:, None] == gallery.text_image_ids
    return Calibration.fit(scores, right.T)
