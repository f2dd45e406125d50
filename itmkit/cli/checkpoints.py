"""The two checkpoints of a run: the best of all of it, and the last."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """The end of the last epoch, as ``last.ckpt``, to resume from.

    Lightning's own ``save_last`` is written only when the best improves, too.
    """

    def __init__(self) -> None:
        super().__init__(
            filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """A resumed run's last checkpoint is its own."""


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` that overlooks nothing.

    Where Lightning forgets the best score when the folder changes, this copies the best checkpoints
    of the folder that is resumed from, so that the resumed run ends with the best checkpoint that
    the run would have had if it had not been stopped. And where ``max_steps`` ends training inside
    an epoch, the weights at the end are validated too. Takes what ``ModelCheckpoint`` takes.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._stage = stage
        self._copies = trainer.is_global_zero
        self._resumed_from = Path(trainer.ckpt_path or "").parent

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(trainer, *args, **kwargs)
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # Lightning validates where a callback stops it

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._stage != "fit" or self.dirpath is None:
            return
        kept: dict[str, Any] = {}
        for path, score in state_dict["best_k_models"].items():
            places = (Path(path), self._resumed_from / Path(path).name)
            source = next((place for place in places if place.is_file()), None)
            if source is not None:
                kept[self._adopt(source)] = score
        best = str(Path(self.dirpath) / Path(state_dict["best_model_path"]).name)
        if best not in kept:  # gone from disk: what comes is judged afresh
            return
        self.best_k_models = kept
        self.best_model_path, self.best_model_score = best, kept[best]
        worst = (min if self.mode == "max" else max)(kept, key=lambda path: float(kept[path]))
        self.kth_best_model_path, self.kth_value = worst, kept[worst]

    def _adopt(self, source: Path) -> str:
        target = Path(self.dirpath or ".") / source.name
        if self._copies and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            shutil.copyfile(source, part)
            os.replace(part, target)
        return str(target)
