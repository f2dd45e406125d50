"""Training with any Trainer and LightningModule: exact resume, checkpoints, signals, records.

Example:
    >>> from lightning.pytorch import Trainer
    >>> from lightning.pytorch.demos.boring_classes import BoringModel
    >>> import os, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     trainer = Trainer(
    ...         accelerator="cpu", max_steps=5, log_every_n_steps=1,
    ...         enable_progress_bar=False, enable_model_summary=False,
    ...         logger=MetricsTable(folder), plugins=[AtomicCheckpointIO()],
    ...         callbacks=[
    ...             ExactResume(), StopOnSignal(), RunRecord(folder, {"seed": 1}),
    ...             LastCheckpoint(dirpath=folder),
    ...         ],
    ...     )
    ...     with exit_on_signal(trainer):
    ...         trainer.fit(BoringModel())
    ...     print(*sorted(os.listdir(folder)))
    environment.yaml hparams.yaml last.ckpt
"""

from itmkit.training.batch_norm import BatchNormSync
from itmkit.training.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint
from itmkit.training.initial_weights import load_initial_weights
from itmkit.training.loggers import Curves, MetricsTable
from itmkit.training.measure import Measured, measure
from itmkit.training.progress import RunProgressBar
from itmkit.training.resume import ExactResume
from itmkit.training.run import Run
from itmkit.training.run_record import RunRecord
from itmkit.training.signals import StopOnSignal, exit_on_signal
from itmkit.training.trainer import make_trainer

__all__ = [
    "AtomicCheckpointIO",
    "BatchNormSync",
    "BestCheckpoint",
    "Curves",
    "ExactResume",
    "LastCheckpoint",
    "Measured",
    "MetricsTable",
    "Run",
    "RunProgressBar",
    "RunRecord",
    "StopOnSignal",
    "exit_on_signal",
    "load_initial_weights",
    "make_trainer",
    "measure",
]
