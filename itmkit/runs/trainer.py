"""The Trainer of a run that is kept in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import (
    AcceleratorRegistry,
    CPUAccelerator,
    CUDAAccelerator,
    MPSAccelerator,
)
from lightning.pytorch.callbacks import Checkpoint, LambdaCallback, ProgressBar
from lightning.pytorch.utilities import rank_zero_warn

from itmkit.runs.folder import point_latest_to
from itmkit.runs.record import RunRecord
from itmkit.runs.resumed_options import ResumedOptions
from itmkit.training import (
    AtomicCheckpointIO,
    BatchNormSync,
    Curves,
    ExactResume,
    MetricsTable,
    RunProgressBar,
    StopOnSignal,
)


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
        exact_resume: whether it gets :class:`ExactResume` and :class:`ResumedOptions`.
        checkpoints: callbacks such as :class:`BestCheckpoint` and :class:`LastCheckpoint`; left
            out with ``enable_checkpointing=False``.
        **options: of the Trainer. On a CPU, ``precision="16-mixed"`` becomes ``"32-true"``.

    Example:
        >>> import os, tempfile
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from itmkit.training import LastCheckpoint
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
            callbacks += [ExactResume(), ResumedOptions(config)]
        if folder is not None:
            callbacks.append(LambdaCallback(on_train_start=lambda *_: _announce(folder)))
    callbacks += [RunRecord(folder, config, command), StopOnSignal()]
    halves = options.get("precision") in (16, "16", "16-mixed")
    if halves and isinstance(_accelerator(options.get("accelerator", "auto")), CPUAccelerator):
        # Lightning would take bf16-mixed, which many processors are several times slower in.
        rank_zero_warn("trainer.precision '16-mixed' needs a GPU: '32-true' is used on this CPU")
        options["precision"] = "32-true"
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


def process_count(trainer: Mapping[str, Any]) -> int:
    """How many processes a Trainer would have, asked before there is one.

    Args:
        trainer: its options; those that are wrong count as if they were not given.

    Example:
        >>> process_count({"accelerator": "cpu", "devices": 2, "num_nodes": 3})
        6
    """
    kind = _accelerator(trainer.get("accelerator") or "auto")
    devices = trainer.get("devices")
    try:
        found = "auto" if devices is None else devices
        found = kind.auto_device_count() if found == "auto" else kind.parse_devices(found)
        count = found if isinstance(found, int) else len(found or ())
        return max(1, count) * int(trainer.get("num_nodes") or 1)
    except (MisconfigurationException, TypeError, ValueError):  # the Trainer says what is wrong
        return 1


def _accelerator(given: Any) -> Any:
    """What a Trainer would take for its ``accelerator``; for a wrong one, the CPU."""
    if given in ("auto", "gpu"):
        gpus = (kind() for kind in (CUDAAccelerator, MPSAccelerator) if kind.is_available())
        return next(gpus, CPUAccelerator())
    return AcceleratorRegistry.get(given, CPUAccelerator()) if isinstance(given, str) else given
