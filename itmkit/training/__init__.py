"""Training with any Trainer and LightningModule: exact resume, checkpoints, signals, the table.

Each is a callback, logger or plugin of Lightning for itself.

Example:
    >>> from lightning.pytorch import Trainer
    >>> from lightning.pytorch.demos.boring_classes import BoringModel
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trainer = Trainer(
    ...         accelerator="cpu", max_steps=5, log_every_n_steps=1,
    ...         enable_progress_bar=False, enable_model_summary=False,
    ...         logger=MetricsTable(folder), plugins=[AtomicCheckpointIO()],
    ...         callbacks=[ExactResume(), StopOnSignal(), LastCheckpoint(dirpath=folder)],
    ...     )
    ...     with exit_on_signal(trainer):
    ...         trainer.fit(BoringModel())
    ...     print(*sorted(os.listdir(folder)))
    last.ckpt
"""

from itmkit.training.batch_norm import BatchNormSync
from itmkit.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from itmkit.training.loggers import Curves, MetricsTable
from itmkit.training.progress import RunProgressBar
from itmkit.training.resume import ExactResume
from itmkit.training.signals import StopOnSignal, exit_on_signal

__all__ = [
    "AtomicCheckpointIO",
    "BatchNormSync",
    "BestCheckpoint",
    "Curves",
    "ExactResume",
    "LastCheckpoint",
    "MetricsTable",
    "RunProgressBar",
    "StopOnSignal",
    "exit_on_signal",
]
