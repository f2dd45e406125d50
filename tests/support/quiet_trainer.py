"""A trainer of a few steps on the CPU that writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer


def quiet_trainer(folder: Path, **options: Any) -> Trainer:
    """Three steps and two batches of validation, unless told otherwise."""
    options = {
        "max_steps": 3,
        "limit_val_batches": 2,
        "enable_checkpointing": False,
    } | options
    return Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
