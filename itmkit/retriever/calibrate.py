"""Probabilities of hits, learnt from the validation split of a run."""

from __future__ import annotations

from pathlib import Path

from itmkit.checks import InputError
from itmkit.files import user_path
from itmkit.index import Calibration
from itmkit.retrieval import encode, score_matrix
from itmkit.retriever.names import run_of
from itmkit.systems import load_run


def calibration_of_run(source: str | Path | None) -> Calibration:
    """Learn probabilities from the captions and images that a run validates on.

    Args:
        source: folder of the run, or a checkpoint in it, whose weights then count; as
            :attr:`itmkit.Retriever.source`.

    Raises:
        FileNotFoundError: if its data are no longer there.
        InputError: if it is no run, has no validation split, or too few captions.
    """
    run = run_of(source)
    if source is None or run is None:
        raise InputError(
            f"model is {source or 'built in code'}; expected a run, with captions to validate on"
        )
    file = user_path(source).absolute()
    model, data = load_run(run, checkpoint=file if file.is_file() else None)
    loader = data.evaluation_dataloader(data.evaluated_split("val"))
    gallery = encode(model, loader)
    scores = score_matrix(model, gallery.images, gallery.texts).T
    relevance = getattr(getattr(loader, "dataset", None), "relevance", None)
    right = None if relevance is None else relevance(gallery.image_ids, gallery.text_ids)
    if right is None:
        right = gallery.image_ids[:, None] == gallery.text_image_ids
    return Calibration.fit(scores, right.T)
