"""Recall of a system on a split, with what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from itmkit.data import ImageTextData
from itmkit.retrieval import EvaluatedOn
from itmkit.systems import Matcher

STAGES = {"validate": "val", "test": "test"}


class Measured(NamedTuple):
    """Recall, and what it was measured on.

    Args:
        recall: names without their stage, such as ``i2t_r1`` and ``rsum``; per cent and ranks.
        on: split, gallery, checkpoint, step.
    """

    recall: dict[str, float]
    on: EvaluatedOn


def measure(
    trainer: Trainer,
    model: Matcher,
    data: ImageTextData,
    command: Literal["validate", "test"] = "test",
    *,
    ckpt_path: str | None = None,
    folder: Path | None = None,
) -> Measured:
    """Evaluate a system as a Trainer does.

    Args:
        trainer: any; its loggers get the recall.
        model: to evaluate.
        data: with the split.
        command: which of the Trainer's methods, and so of the splits.
        ckpt_path: checkpoint to load for that; None: the weights as they are.
        folder: a checkpoint in this folder is named from there.

    Raises:
        SIGTERMException: where the process received SIGTERM during the evaluation.
    """
    results: list[Mapping[str, float]] = getattr(trainer, command)(
        model, datamodule=data, ckpt_path=ckpt_path, verbose=False, weights_only=True
    )
    if trainer.received_sigterm:
        raise SIGTERMException  # Lightning only notes it while it evaluates
    stage, named, step = STAGES[command], ckpt_path, trainer.global_step
    testing = command == "test"
    batches = int(sum(trainer.num_test_batches if testing else trainer.num_val_batches))
    whole = len((trainer.test_dataloaders if testing else trainer.val_dataloaders) or ())
    if ckpt_path is not None:
        content = torch.load(ckpt_path, map_location="cpu", weights_only=True, mmap=True)
        step, path = content.get("global_step", 0), Path(ckpt_path).resolve()
        if folder is not None and path.is_relative_to(folder.resolve()):
            named = path.relative_to(folder.resolve()).as_posix()
    images, captions = model.gallery_size
    part = (batches, whole) if batches < whole else None
    logged = {name: value for result in results for name, value in result.items()}
    return Measured(
        {n.removeprefix(f"{stage}/"): v for n, v in logged.items() if n.startswith(f"{stage}/")},
        EvaluatedOn(stage, images, captions, named, step, part),
    )
