"""What an evaluation was of: split, gallery, checkpoint, step."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import Trainer

from itmkit.retrieval import EvaluatedOn
from itmkit.systems import Matcher


def evaluated_on(
    trainer: Trainer, model: Matcher, checkpoint: str | None, folder: Path | None
) -> EvaluatedOn:
    """Describe the evaluation that a Trainer has just made.

    Args:
        trainer: the Trainer, after ``validate`` or ``test``.
        model: what it evaluated.
        checkpoint: the checkpoint it loaded for that, if any.
        folder: of the run; a checkpoint in it is named from there.
    """
    split = "test" if trainer.state.fn == "test" else "val"
    done = trainer.num_test_batches if split == "test" else trainer.num_val_batches
    loader = trainer.test_dataloaders if split == "test" else trainer.val_dataloaders
    batches, whole = int(sum(done)), len(loader or ())
    images, captions = model.gallery_size
    step = trainer.global_step
    if checkpoint is not None:
        step = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get(
            "global_step", 0
        )
        path = Path(checkpoint)
        if folder is not None and path.resolve().is_relative_to(folder.resolve()):
            checkpoint = path.resolve().relative_to(folder.resolve()).as_posix()
    return EvaluatedOn(
        split=split,
        images=images,
        captions=captions,
        checkpoint=checkpoint,
        step=step,
        batches=(batches, whole) if batches < whole else None,
    )
