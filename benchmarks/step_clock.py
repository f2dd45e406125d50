"""What a step and an evaluation of a run take: a callback."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.memory import peak_megabytes, reset_peak
from itmkit.files import write_text

#: what it writes into the folder of a run
FILE_NAME = "step_clock.json"


class StepClock(Callback):
    """Writes seconds and peak memory of every training step and of the evaluation.

    The file is ``step_clock.json`` in the folder of the run: of each step the seconds, the peak
    memory in MB and the number of trained parameters; of an evaluation seconds and memory. On a GPU
    memory is the most that torch had allocated, on a CPU that of the process.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._begin(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        self.steps.append(self._ended(trainer) | {"trained": trained})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, {"steps": self.steps, "global_step": trainer.global_step})

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.training:
            self._write(trainer, {"evaluation": self._ended(trainer)})

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, {"evaluation": self._ended(trainer)})

    def _begin(self, trainer: Trainer) -> None:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        else:
            reset_peak()
        self._start = time.perf_counter()

    def _ended(self, trainer: Trainer) -> dict[str, float]:
        device = trainer.strategy.root_device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            memory = torch.cuda.max_memory_allocated(device) / 1024**2
        else:
            memory = peak_megabytes()
        return {"seconds": time.perf_counter() - self._start, "megabytes": round(memory)}

    def _write(self, trainer: Trainer, found: dict[str, Any]) -> None:
        folder = trainer.log_dir  # all processes ask for it together
        if trainer.is_global_zero and folder is not None:
            write_text(Path(folder) / FILE_NAME, json.dumps(found, indent=1) + "\n")
