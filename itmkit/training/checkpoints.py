"""The two checkpoints of a run, the best of all of it and the last, and how they reach the disk."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from itmkit._internals import accumulates, epoch_ends
from itmkit.checks import check_optional_count
from itmkit.files import atomic_write, copy_file, path_inside, user_path


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint so that its file is always complete, the old one or the new one.

    Lightning writes to the folder for temporary files, and copies the file from there where that is
    on another file system: a process killed while it copies leaves half a file. A path with a
    scheme, such as ``s3://…``, is left to Lightning.

    Example:
        >>> trainer = Trainer(accelerator="cpu", plugins=[AtomicCheckpointIO()], logger=False)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic_write(Path(path)) as file:
            file.write(content.getbuffer())


class LastCheckpoint(Checkpoint):
    """Where to resume from, as ``last.ckpt``: the end of the last epoch, or a later step.

    Also saves when the process receives SIGTERM, or Ctrl-C with
    :class:`~itmkit.training.StopOnSignal`. Lightning's own ``save_last`` is written only when the
    best improves, too.

    Args:
        every_n_train_steps: after how many optimizer steps it is written within an epoch, at least
            1; where null, only at the end of epochs.
        dirpath: folder of the checkpoint; where null, ``checkpoints`` in the Trainer's ``log_dir``.

    Raises:
        InputError: if ``every_n_train_steps`` is not a whole number of at least 1.

    Example:
        >>> import tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     last = LastCheckpoint(every_n_train_steps=5, dirpath=folder)
        ...     trainer = Trainer(
        ...         accelerator="cpu", max_steps=12, callbacks=[last], logger=False,
        ...         enable_progress_bar=False, enable_model_summary=False,
        ...     )
        ...     trainer.fit(BoringModel())
        ...     torch.load(last.path, weights_only=True)["global_step"]
        12
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        dirpath: str | os.PathLike[str] | None = None,
    ) -> None:
        check_optional_count(every_n_train_steps=every_n_train_steps)
        self.dirpath = dirpath
        self._period = every_n_train_steps
        self._saved = (0, 0)  # steps and batches at the last save

    @property
    def path(self) -> Path:
        """Of the checkpoint, whether it is there or not."""
        return user_path(self.dirpath or "checkpoints") / "last.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.dirpath = trainer.strategy.broadcast(self.dirpath)  # that of the first process
        if self.dirpath is None:
            self.dirpath = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints"

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # A resumed run that ends before its first checkpoint can be resumed, too.
        if trainer.state.fn == "fit" and trainer.is_global_zero:
            source = Path(trainer.ckpt_path or "")
            if source.resolve() != self.path.resolve():
                copy_file(source, self.path)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._period is None or accumulates(trainer) or epoch_ends(trainer):
            return
        if trainer.global_step % self._period == 0:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        terminated = trainer.state.fn == "fit" and isinstance(exception, SIGTERMException)
        if terminated and self._saved != (trainer.global_step, trainer.fit_loop.total_batch_idx):
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path)
        self._saved = (trainer.global_step, trainer.fit_loop.total_batch_idx)


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ``ModelCheckpoint`` that keeps the best of a resumed run and validates the end.

    Where Lightning forgets the best score when the folder changes, this copies the best checkpoints
    of the folder that is resumed from, so that the resumed run ends with the best checkpoint that
    the run would have had if it had not been stopped. And where ``max_steps`` ends training inside
    an epoch, the weights at the end are validated too. Takes what ``ModelCheckpoint`` takes.

    Example:
        >>> best = BestCheckpoint("runs/mine", filename="best", monitor="val/rsum", mode="max")
        >>> trainer = Trainer(accelerator="cpu", callbacks=[best], logger=False)
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._resumes, self._copies = stage == "fit", trainer.is_global_zero

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._resumed_from = Path(trainer.ckpt_path or "")

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        super().on_train_batch_end(trainer, *args, **kwargs)
        if 0 <= trainer.max_steps <= trainer.global_step:
            trainer.should_stop = True  # Lightning validates where a callback stops it

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._resumes or self.dirpath is None:
            return
        scores, old = state_dict["best_k_models"], Path(state_dict["dirpath"] or "")
        names = {path: path_inside(old, path) for path in scores}
        # The folder may have been moved; what is resumed from may be in a folder inside of it.
        depth = max((len(name.parts) for name in names.values()), default=0)
        folders = [old, *list(self._resumed_from.parents)[:depth]]
        targets: dict[str, Path] = {}
        for path in sorted(scores, key=scores.__getitem__, reverse=self.mode == "max"):
            places = (folder / names[path] for folder in folders)
            source = next((place for place in places if place.is_file()), None)
            if source is not None and len(targets) != self.save_top_k:
                targets[path] = Path(self.dirpath) / names[path]
                if self._copies and not targets[path].exists():
                    copy_file(source, targets[path])
        kept = {str(targets[path]): scores[path] for path in scores if path in targets}
        if kept:
            ends = min(kept, key=kept.__getitem__), max(kept, key=kept.__getitem__)
            worst, best = ends if self.mode == "max" else ends[::-1]
            self.best_k_models, self.current_score = kept, state_dict["current_score"]
            self.best_model_path, self.best_model_score = best, kept[best]
            self.kth_best_model_path, self.kth_value = worst, kept[worst]
