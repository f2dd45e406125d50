"""Runs that stop in the middle of an epoch, and what they need to go on bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

BATCHES = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(2))


class Batches:
    """Six different batches of three rows, from where it was stopped."""

    def __init__(self) -> None:
        self.start = 0

    def __len__(self) -> int:
        return len(BATCHES)

    def __iter__(self) -> Iterator[list[Tensor]]:
        start, self.start = self.start, 0
        for at in range(start, len(self)):
            self.at = at
            yield [BATCHES[at]]

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = (state["at"] + 1) % len(self)


class Stop(Callback):
    """Save after some batches, in mid-epoch or at its end, and stop."""

    def __init__(self, path: Path, batches: int) -> None:
        self.path, self.batches = path, batches

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fit_loop.epoch_loop.total_batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def trainer_of(*callbacks: Callback, **options: Any) -> Trainer:
    """On the CPU, and nothing written; one process and one epoch unless told otherwise."""
    options = {
        "max_epochs": 1,
        "accelerator": "cpu",
        "devices": 1,
        "enable_checkpointing": False,
    } | options
    return Trainer(
        **options,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_equal(found: Any, expected: Any) -> None:
    """Bit for bit, in nested containers too."""
    torch.testing.assert_close(found, expected, atol=0, rtol=0)
