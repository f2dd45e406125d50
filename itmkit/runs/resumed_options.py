"""Options of a resumed run that differ from those of its checkpoint: applied, or refused.

The checkpoint holds a description of the optimizers and schedules as they were before their first
step. On resume the same description of the new run is compared with it.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from itmkit._internals import callbacks_of
from itmkit.checks import InputError
from itmkit.configs.flat import flat_options

KEY = "options"
WEIGHTS_ALONE = "start from its weights alone with --init_from"
INSTEAD = f"resume with the same, or {WEIGHTS_ALONE}"
#: of an optimizer, with a state that the checkpoint lacks; momentum may be added to SGD alone
_NEED_STATE = {"amsgrad", "centered", "momentum"}
#: options that say which run it is, and not how it is trained
_OF_THE_RUN = {"config", "ckpt_path", "init_from", "init_strict", "name", "untrained"}
_DEEPEST = 8  # of nested values that are described
_FOLLOWS_THE_RATE = {"optimizer", "base_lrs", "_last_lr"}  # in a schedule


class Change(NamedTuple):
    """An option that differs from that of the checkpoint."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = ("none" if value is None else value for value in (self.old, self.new))
        return f"{self.name}: {old} → {new}"


class ResumedOptions(Callback):
    """Applies options of a resumed run that differ from those of its checkpoint, and prints them.

    Lightning would restore the old ones: of the optimizer and its schedule
    (:func:`~itmkit.runs.resumed_options.apply_options`), and of callbacks. A resumed run has all of
    its ``max_time``. What cannot be changed is refused when ``fit`` starts.

    Args:
        options: what the run was configured with, nested, in plain values. Differences are printed
            under these names.

    Raises:
        InputError: when a resumed fit starts, for an option that cannot be changed.

    Example:
        >>> import tempfile, torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class Tiny(BoringModel):
        ...     def configure_optimizers(self):
        ...         return torch.optim.SGD(self.parameters(), self.hparams.lr)
        >>> def fit(lr, max_epochs, folder, ckpt_path=None):
        ...     model = Tiny()
        ...     model.save_hyperparameters({"lr": lr})
        ...     trainer = Trainer(
        ...         accelerator="cpu", max_epochs=max_epochs, limit_train_batches=2,
        ...         logger=False, enable_checkpointing=False, enable_progress_bar=False,
        ...         enable_model_summary=False, callbacks=[ResumedOptions()],
        ...     )
        ...     trainer.fit(model, ckpt_path=ckpt_path, weights_only=True)
        ...     trainer.save_checkpoint(f"{folder}/last.ckpt")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fit(0.1, 1, folder)
        ...     fit(0.2, 2, folder, ckpt_path=f"{folder}/last.ckpt")
        changed since the checkpoint: optimizer.lr: 0.1 → 0.2
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        kept = {name: one for name, one in (options or {}).items() if name not in _OF_THE_RUN}
        self._options = flat_options(kept)
        self._configured: dict[str, Any] = {}
        self._checkpoint: dict[str, Any] | None = None  # while it is restored
        self._arguments: dict[Callback, dict[str, Any]] = {}  # of callbacks, before that

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._checkpoint = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Not by state_dict: a Trainer that tests would warn that it lacks this callback.
        checkpoint[KEY] = {"given": self._options, "configured": self._configured}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if trainer.state.fn != "fit":
            return
        self._checkpoint = checkpoint
        callbacks = callbacks_of(trainer, Callback)
        self._arguments = {one: _constructor_arguments(one) for one in callbacks}
        for timer in callbacks_of(trainer, Timer):
            checkpoint["callbacks"].pop(timer.state_key, None)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._configured = describe(trainer, pl_module)
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        changes: list[Change] = []
        applied: list[Change] = []
        saved = checkpoint.get(KEY)
        if saved is None:
            rank_zero_warn(
                "the checkpoint was saved without ResumedOptions: options of the optimizer are "
                "those of the checkpoint"
            )
        else:
            changes = changed_options(saved["given"], self._options)
            applied = apply_options(checkpoint, saved["configured"], trainer, pl_module)
        for callback, arguments in self._arguments.items():
            restored = _constructor_arguments(callback)
            for name, value in arguments.items():
                if restored[name] is not value and restored[name] != value:
                    setattr(callback, name, value)
                    option = f"{type(callback).__name__}.{name}"
                    applied.append(Change(option, restored[name], value))
        words = {change.name.rpartition(".")[2] for change in changes}
        changes += [one for one in applied if one.name.rpartition(".")[2] not in words]
        for change in changes:
            rank_zero_only(print)(f"changed since the checkpoint: {change}")


def _constructor_arguments(callback: Callback) -> dict[str, Any]:
    """The arguments of a callback's constructor that it keeps under their names."""
    kept = vars(callback)
    return {
        name: kept[name] for name in inspect.signature(type(callback)).parameters if name in kept
    }


def changed_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """What differs between two results of :func:`itmkit.configs.flat.flat_options`.

    Where a class differs, its arguments are not listed.

    Example:
        >>> old = {"model.optimizer": "Adam", "model.optimizer.lr": 0.1}
        >>> print(*changed_options(old, {"model.optimizer": "SGD"}))
        model.optimizer: Adam → SGD
    """
    found: list[Change] = []
    for name in sorted(old.keys() | new.keys()):
        one, other = old.get(name), new.get(name)
        inside = any(name.startswith(f"{change.name}.") for change in found)
        if one != other and not inside:
            found.append(Change(name, one, other))
    return found


def describe(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """The optimizers and schedules of a run that has made no step yet, in plain values."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        "optimizer": [
            {"class_path": _path(one), "groups": [_describe_group(g, names) for g in _groups(one)]}
            for one in trainer.optimizers
        ],
        "lr_scheduler": [_describe_schedule(one) for one in trainer.lr_scheduler_configs],
    }


def apply_options(
    checkpoint: dict[str, Any],
    configured: dict[str, Any],
    trainer: Trainer,
    module: LightningModule,
) -> list[Change]:
    """Put what is configured into a checkpoint that is about to be restored, where it differs.

    Hyper-parameters of the optimizer are those of the new run. So is the schedule, at the step or
    epoch at which the checkpoint was saved: the learning rate is what it would be there if the run
    had had this schedule from its start. ``ReduceLROnPlateau`` keeps what it has seen and how far
    it has reduced the rate.

    Args:
        checkpoint: as loaded; changed in place. Where nothing differs, nothing is changed.
        configured: :func:`describe` of the run that saved it.
        trainer: with new optimizers and schedules, which have not made a step.
        module: that is trained.

    Returns:
        What differed.

    Raises:
        InputError: if the checkpoint was trained with another optimizer, or other parameter groups,
            or lacks a part of the optimizer's state.
    """
    new = describe(trainer, module)
    changes = [
        change._replace(name=re.sub(r"\.(\d+|groups)\b", "", change.name))
        for change in changed_options(flat_options(configured), flat_options(new))
    ]
    for change in changes:
        _refuse(change, new)
    prefix = "optimizer."
    of_optimizer = {c.name.removeprefix(prefix) for c in changes if c.name.startswith(prefix)}
    groups = [group for one in trainer.optimizers for group in _groups(one)]
    made = [dict(group) for group in groups]
    # A schedule may read all but what is the optimizer's alone.
    alone = {name for one in trainer.optimizers for name in one.defaults} - {"lr"}
    if of_optimizer - alone or configured["lr_scheduler"] != new["lr_scheduler"]:
        checkpoint["lr_schedulers"] = [
            _state_at_checkpoint(checkpoint, configured, number, trainer)
            for number in range(len(trainer.lr_scheduler_configs))
        ]
        of_optimizer |= {"lr", "initial_lr"}
    saved = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
    for old, before, now in zip(saved, made, groups, strict=True):
        scheduled = {name for name in now if name != "params" and now[name] != before.get(name)}
        for name in of_optimizer | scheduled if changes else ():
            old.pop(name, None)
            if name in now:
                old[name] = now[name]
    return list({str(change): change for change in changes}.values())


def _refuse(change: Change, new: Mapping[str, Any]) -> None:
    """Raise where a change of the optimizer is none that a checkpoint can go on with."""
    name, old, now = change
    word = name.rpartition(".")[2]
    refused = f"model.{name} is {now}; the checkpoint was trained with {old}: {INSTEAD}"
    if name == "optimizer.weights":
        moved = (sorted(set(old or ()) ^ set(now or ())) or now)[0]
        raise InputError(
            f"{moved} is in another parameter group of the optimizer than in the checkpoint "
            f"(model.lr_factors, and which weights are trained): {INSTEAD}"
        )
    stateless = word == "momentum" and (old or "RMSprop" not in str(new["optimizer"]))
    other_state = name.startswith("optimizer.") and word in _NEED_STATE and not stateless
    if name == "optimizer" or other_state:
        raise InputError(refused)


def _groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return optimizer.param_groups


def _describe_group(group: Mapping[str, Any], names: Mapping[int, str]) -> dict[str, Any]:
    values = {name: _plain(value) for name, value in group.items() if name != "params"}
    if "initial_lr" in values:  # the rate before the schedule
        values["lr"] = values.pop("initial_lr")
    return {"weights": [names.get(id(one), "?") for one in group["params"]]} | values


def _describe_schedule(config: LRSchedulerConfig) -> dict[str, Any]:
    run: dict[str, Any] = {
        name: getattr(config, name) for name in ("interval", "frequency", "monitor")
    }
    return {**_plain(config.scheduler), **run}


def _plain(value: Any, depth: int = 0) -> Any:
    """As numbers, texts, lists and dictionaries, which every checkpoint may hold."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    inner = partial(_plain, depth=depth + 1)
    if depth >= _DEEPEST:
        return _path(value)
    if isinstance(value, (list, tuple)):
        return [inner(one) for one in value]
    if isinstance(value, Mapping):
        return {str(name): inner(one) for name, one in value.items()}
    if inspect.isfunction(value):
        return {"class_path": value.__qualname__} | inner(inspect.getclosurevars(value).nonlocals)
    if isinstance(value, partial):
        return inner([value.func, value.args, value.keywords])
    if isinstance(value, LRScheduler):
        kept = {name: one for name, one in vars(value).items() if name not in _FOLLOWS_THE_RATE}
        return {"class_path": _path(value)} | inner(kept)
    return _path(value)


def _path(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _state_at_checkpoint(
    checkpoint: dict[str, Any], configured: dict[str, Any], number: int, trainer: Trainer
) -> dict[str, Any]:
    """The state that a new schedule would have at the checkpoint; its optimizer gets the rates."""
    config = trainer.lr_scheduler_configs[number]
    schedule, new = config.scheduler, _describe_schedule(config)
    known = dict(enumerate(configured["lr_scheduler"])).get(number, {})
    saved = dict(enumerate(checkpoint["lr_schedulers"])).get(number, {})
    if config.reduce_on_plateau:
        state = schedule.state_dict()
        if known.get("class_path") == new["class_path"]:
            state = saved | {n: state[n] for n in state if new.get(n) != known.get(n)}
            at = trainer.optimizers.index(schedule.optimizer)
            reduced = checkpoint["optimizer_states"][at]["param_groups"]
            began = configured["optimizer"][at]["groups"]
            for now, old, first in zip(_groups(schedule.optimizer), reduced, began, strict=True):
                now["lr"] *= old["lr"] / first["lr"]  # reduced as far
        return deepcopy(state)
    steps = _steps(checkpoint, config)
    if all(known.get(name) == new[name] for name in ("interval", "frequency")):
        steps = saved.get("last_epoch", steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has made no step
        try:
            for _ in range(steps):
                schedule.step()  # type: ignore[call-arg]
        except ValueError as error:
            raise InputError(
                f"model.lr_scheduler is at its end before {config.interval} {steps}, at which the "
                f"checkpoint was saved: {error}"
            ) from error
    return deepcopy(schedule.state_dict())


def _steps(checkpoint: Mapping[str, Any], config: LRSchedulerConfig) -> int:
    """How often a schedule would have advanced until the checkpoint."""
    if config.interval == "step":
        return int(checkpoint["global_step"]) // config.frequency
    loop = checkpoint["loops"]["fit_loop"]
    count, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    ends = count["processed"] < count["ready"] and batches["is_last_batch"]
    return (int(count["processed"]) + bool(ends)) // config.frequency
