"""The private parts of Lightning and of torch's schedules that itmkit uses, checked at import.

Each is named here alone. Lightning has no public way to end all processes of a run at one point, to
know whether a batch ends an accumulation, or to restart a loop where a checkpoint was really saved;
torch none to see the schedules inside another. Their versions have an upper bound for that.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loops.evaluation_loop import RestartStage, _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, SequentialLR

from itmkit.files import atomic_write

Handler = Callable[[int, Any], None]
Kind = TypeVar("Kind", bound=Callback)

_METHODS: dict[type, tuple[str, ...]] = {
    _SignalConnector: ("_sigterm_notifier_fn", "_slurm_sigusr_handler_fn"),
    _TrainingEpochLoop: (
        "_broadcast_sigterm_tensor",
        "_num_ready_batches_reached",
        "_should_accumulate",
        "_should_check_val_fx",
    ),
    ExperimentWriter: ("_rewrite_with_new_header",),
    DistributedDataParallel: ("_remove_autograd_hooks",),
}
_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    Trainer: ("_logger_connector", "_signal_connector"),
    _FitLoop: ("_data_fetcher",),
    _TrainingEpochLoop: ("_batches_that_stepped",),
    _EvaluationLoop: ("_restart_stage",),
    _Loop: ("_restarting", "_resuming_from_checkpoint"),
    DDPStrategy: ("_pl_static_graph_delay_done",),
    _SignalConnector: ("received_sigterm",),
    SequentialLR: ("_schedulers", "_last_lr"),
    ChainedScheduler: ("_schedulers", "_last_lr"),
}


def missing_internals() -> list[str]:
    """The private parts that the installed versions do not have."""
    methods = [(owner, name) for owner in _METHODS for name in _METHODS[owner]]
    missing = [f"{owner.__name__}.{name}" for owner, name in methods if not hasattr(owner, name)]
    for owner, names in _ATTRIBUTES.items():  # set by the constructor
        made = vars(owner)["__init__"]
        code = getattr(made, "__wrapped__", made).__code__
        missing += [f"{owner.__name__}.{name}" for name in names if name not in code.co_names]
    return missing


if _missing := missing_internals():
    raise ImportError(
        f"lightning {lightning.__version__} or torch {torch.__version__} has no "
        f"{', '.join(_missing)}; expected versions that itmkit was written for (see its "
        "dependencies)"
    )


def callbacks_of(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """The callbacks of a kind; their list is an attribute that no annotation of a Trainer names."""
    return [one for one in vars(trainer)["callbacks"] if isinstance(one, kind)]


def data_module_of(trainer: Trainer) -> Any:
    """The data module of a run; None where it has plain loaders, and the Trainer no attribute."""
    return getattr(trainer, "datamodule", None)


# ------------------------------------------------------------------------------------- signals


def signal_handlers(trainer: Trainer) -> tuple[Handler, Handler]:
    """Lightning's own handlers of SIGTERM, and of SLURM's signal before the time is up."""
    signals: Any = trainer._signal_connector
    kind: Any = type(signals)
    own = kind._sigterm_notifier_fn, kind._slurm_sigusr_handler_fn
    return partial(own[0], signals), partial(own[1], signals)


def set_signal_handlers(trainer: Trainer, sigterm: Handler, slurm: Handler | None = None) -> None:
    """Let other handlers take their place, before the Trainer registers them."""
    signals: Any = trainer._signal_connector
    signals._sigterm_notifier_fn = sigterm
    if slurm is not None:
        signals._slurm_sigusr_handler_fn = slurm


def note_sigterm(trainer: Trainer, noted: bool = True) -> None:
    """Let Lightning end the run, or not, as if it had received a SIGTERM."""
    trainer._signal_connector.received_sigterm = noted


def share_no_sigterm(trainer: Trainer) -> None:
    """Leave out the broadcast by which Lightning tells all processes in each step."""
    loop: Any = trainer.fit_loop.epoch_loop
    loop._broadcast_sigterm_tensor = lambda: None


# --------------------------------------------------------------------------------------- loops


def accumulates(trainer: Trainer) -> bool:
    """Whether the gradients of this batch wait for those of the next."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def epoch_ends(trainer: Trainer) -> bool:
    """Whether this batch is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning would validate after this batch."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def logged_step(trainer: Trainer) -> int:
    """The step that Lightning writes beside what it logs of this batch."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def set_logged_step(trainer: Trainer, step: int) -> None:
    """Set :func:`logged_step`."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def metrics_to_log(trainer: Trainer) -> dict[str, Any] | None:
    """What Lightning logs of this batch; None where it logs nothing."""
    logs = trainer._logger_connector
    return dict(logs.metrics["log"]) if logs.should_update_logs else None


def restart_epoch_anew(trainer: Trainer) -> None:
    """Let a resumed run begin its next epoch, not the rest of one that was over."""
    fit = trainer.fit_loop
    fit._restarting = fit.epoch_loop.restarting = False
    fit.reset_restart_stage()


def draw_order_again(trainer: Trainer) -> None:
    """Let a resumed run, at the start of an epoch, ask the loader for its batches as others do.

    Lightning asks when it sets the data up, before callbacks have restored the random numbers.
    """
    trainer.fit_loop._resuming_from_checkpoint = False


def restart_whole_validation(trainer: Trainer) -> None:
    """Let a resumed run do all of the validation that it was stopped in, or right before."""
    validation = trainer.fit_loop.epoch_loop.val_loop
    validation.restarting = False
    validation._restart_stage = RestartStage.RESTARTED_MID_EVALUATION


# ----------------------------------------------------------------------------------- schedules


def schedules_inside(schedule: LRScheduler) -> Sequence[LRScheduler]:
    """Those that a SequentialLR or ChainedScheduler is made of."""
    return getattr(schedule, "_schedulers", ())


def note_last_rates(schedule: LRScheduler) -> None:
    """Let the schedule's last rates be those of its optimizer, after they were changed."""
    schedule._last_lr = [group["lr"] for group in schedule.optimizer.param_groups]


# ----------------------------------------------------------------------------------------- DDP


def wrap_anew(strategy: DDPStrategy, wrapper: DistributedDataParallel) -> None:
    """Let DDP look again at which parameters have a gradient."""
    wrapper._remove_autograd_hooks()  # else they stay for as long as somebody holds the wrapper
    strategy.model = wrapper.module
    strategy.configure_ddp()
    strategy._pl_static_graph_delay_done = False


# ------------------------------------------------------------------------------------- loggers


def rewrite_atomically(writer: ExperimentWriter) -> None:
    """Let the table of a CSV logger, when a column is added, be replaced by a whole new one."""
    vars(writer)["_rewrite_with_new_header"] = partial(_rewrite, writer)


def _rewrite(table: ExperimentWriter, fieldnames: list[str]) -> None:
    path, text = Path(table.metrics_file_path), io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames)
    writer.writeheader()
    with open(path, newline="") as file:
        writer.writerows(csv.DictReader(file))
    with atomic_write(path) as whole:
        whole.write(text.getvalue().encode())
