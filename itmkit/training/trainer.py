"""The Trainer of a run that is kept in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback, ModelCheckpoint, ProgressBar

from itmkit.training.batch_norm import BatchNormSync
from itmkit.training.checkpoints import AtomicCheckpointIO, LastCheckpoint
from itmkit.training.cpu_precision import precision_on_cpu
from itmkit.training.loggers import Curves, MetricsTable
from itmkit.training.progress import RunProgressBar
from itmkit.training.resume import ExactResume
from itmkit.training.run_folder import point_latest_to
from itmkit.training.run_record import RunRecord
from itmkit.training.signals import StopOnSignal


def make_trainer(
    folder: Path | None,
    *,
    config: Mapping[str, Any] | None = None,
    command: list[str] | None = None,
    fits: bool = True,
    exact_resume: bool = True,
    checkpoints: Sequence[Checkpoint] = (),
    **options: Any,
) -> Trainer:
    """A Trainer that records its run in a folder, stops on signals and can be resumed exactly.

    This is what ``itmkit fit``, ``validate``, ``test`` and ``predict`` run with.

    Args:
        folder: of the run: loggers and checkpoints that name no folder write there; None for a
            process that writes nothing.
        config: what the run was configured with, nested, in plain values.
        command: words of the command line, see :class:`RunRecord`.
        fits: whether it trains; then ``latest`` beside the folder leads to it once it has begun.
        exact_resume: whether it gets :class:`ExactResume`.
        checkpoints: callbacks such as :class:`BestCheckpoint` and :class:`LastCheckpoint`; left
            out with ``enable_checkpointing=False``.
        **options: of the Trainer. On a CPU, ``precision="16-mixed"`` becomes ``"32-true"``.

    Example:
        >>> import os, tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> with tempfile.TemporaryDirectory() as runs:
        ...     folder = Path(runs, "first")
        ...     folder.mkdir()
        ...     trainer = make_trainer(
        ...         folder, checkpoints=[LastCheckpoint()], accelerator="cpu", max_steps=2,
        ...         enable_progress_bar=False, enable_model_summary=False,
        ...     )
        ...     trainer.fit(BoringModel())
        ...     sorted(os.listdir(runs))
        run folder: .../first
        ['first', 'latest']
    """
    callbacks = as_list(options.get("callbacks"))
    if fits:
        if exact_resume:
            callbacks.append(ExactResume(config))
        if folder is not None:
            callbacks.append(LambdaCallback(on_train_start=lambda *_: _announce(folder)))
    callbacks += [RunRecord(folder, config, command), StopOnSignal()]
    options |= precision_on_cpu(options.get("precision"), options.get("accelerator", "auto"))
    if options.get("sync_batchnorm"):
        options["plugins"] = [*as_list(options.get("plugins")), BatchNormSync()]
    if options.get("fast_dev_run"):
        options["enable_checkpointing"] = False
        callbacks = [one for one in callbacks if not isinstance(one, Checkpoint)]
    elif options.get("enable_checkpointing") is not False:
        callbacks += checkpoints
    bars = [callback for callback in callbacks if isinstance(callback, ProgressBar)]
    if options.get("enable_progress_bar") is not False and not bars:
        callbacks.append(RunProgressBar())
    if folder is not None:
        options["default_root_dir"] = folder
        for callback in callbacks:
            if isinstance(callback, (ModelCheckpoint, LastCheckpoint)):
                callback.dirpath = callback.dirpath or str(folder / "checkpoints")
        if options.get("logger") is not False:
            loggers = as_list(options.get("logger")) or [Curves(folder)]
            options["logger"] = [MetricsTable(folder), *loggers]
    trainer = Trainer(**options | {"callbacks": callbacks})
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
    return trainer


def as_list(value: Any) -> list[Any]:
    """The values of an option that takes one, several, none, or true or false for the default."""
    if isinstance(value, list):
        return list(value)
    return [] if value is None or isinstance(value, bool) else [value]


def _announce(folder: Path) -> None:
    # Not earlier: all processes have read their checkpoint, where `latest` may lead to it.
    point_latest_to(folder)
    print(f"run folder: {folder}")
