"""Options of a resumed run that differ from those of its checkpoint: applied, or refused.

What was configured is described in the checkpoint: the optimizer and its schedule right after they
were made, before any step. On resume the same description of the new run is compared with it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch import Tensor
from torch.optim import Optimizer, RMSprop
from torch.optim.lr_scheduler import LRScheduler

from itmkit.checks import InputError

WEIGHTS_ALONE = "start from its weights alone with --init_from"
INSTEAD = f"resume with the same, or {WEIGHTS_ALONE}"
# Options that say which run it is, and not how it is trained.
_OF_THE_RUN = {"config", "ckpt_path", "init_from", "init_strict", "name", "untrained"}
_NEEDS_OTHER_STATE = {"amsgrad", "centered"}  # of an optimizer: not in the checkpoint
_DEEPEST = 8
_FOLLOWS_THE_RATE = {"optimizer", "base_lrs", "_last_lr"}  # in a schedule


class Change(NamedTuple):
    """An option that differs from that of the checkpoint."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name}: {_written(self.old)} → {_written(self.new)}"


# ------------------------------------------------------------------------------------ by option


def flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by the names that a user types, without those that do not bear on training.

    Example:
        >>> model = {"class_path": "Tiny", "init_args": {"rate": 0.1}}
        >>> flat_options({"name": "mine", "model": model, "trainer": {"max_epochs": 2}})
        {'model': 'Tiny', 'model.rate': 0.1, 'trainer.max_epochs': 2}
    """
    flat: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _OF_THE_RUN:
            _flatten(name, value, flat)
    return flat


def _flatten(name: str, value: Any, flat: dict[str, Any]) -> None:
    if isinstance(value, list) and any(isinstance(one, Mapping) for one in value):
        value = {str(number): one for number, one in enumerate(value)}
    if not isinstance(value, Mapping):
        flat[name] = value
        return
    for key, one in value.items():
        if key == "init_args" and isinstance(one, Mapping):
            _flatten(name, one, flat)
        else:
            _flatten(name if key == "class_path" else f"{name}.{key}", one, flat)


def changed_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """What differs between two results of :func:`flat_options`.

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


def constructor_arguments(callback: Callback) -> dict[str, Any]:
    """The arguments of a callback's constructor that it keeps under their names."""
    kept = vars(callback)
    return {
        name: kept[name] for name in inspect.signature(type(callback)).parameters if name in kept
    }


# ------------------------------------------------------------------------------------ by object


def describe(trainer: Trainer, module: LightningModule) -> dict[str, Any]:
    """The optimizers and schedules of a run that has made no step yet, in plain values."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        "optimizers": [_describe_optimizer(one, names) for one in trainer.optimizers],
        "schedules": [_describe_schedule(one) for one in trainer.lr_scheduler_configs],
    }


def apply_options(
    checkpoint: dict[str, Any],
    configured: dict[str, Any] | None,
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
        configured: :func:`describe` of the run that saved it; None where it is not known, and
            nothing is applied.
        trainer: with new optimizers and schedules, which have not made a step.
        module: that is trained.

    Returns:
        What differed.

    Raises:
        InputError: if the checkpoint has no state of an optimizer, or that of another optimizer or
            of other parameter groups.
    """
    _check_states(checkpoint, trainer.optimizers, known=configured is not None)
    new = describe(trainer, module)
    if configured is None or configured == new:
        return []
    found: list[Change] = []
    for old_one, new_one in zip(configured["optimizers"], new["optimizers"], strict=True):
        found += _optimizer_changes(old_one, new_one)
    names = {change.name.removeprefix("optimizer.") for change in found}
    made = [dict(group) for group in _groups(trainer.optimizers)]
    # A schedule may read all but what is the optimizer's alone.
    alone = {name for one in trainer.optimizers for name in one.defaults} - {"lr"}
    if names - alone or configured["schedules"] != new["schedules"]:
        found += _schedule_changes(configured["schedules"], new["schedules"])
        checkpoint["lr_schedulers"] = [
            _state_at_checkpoint(checkpoint, configured, number, trainer)
            for number in range(len(trainer.lr_scheduler_configs))
        ]
        names |= {"lr", "initial_lr"}
    saved = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
    for old, before, now in zip(saved, made, _groups(trainer.optimizers), strict=True):
        scheduled = {name for name in now if name != "params" and now[name] != before.get(name)}
        for name in names | scheduled:
            if name in now:
                old[name] = now[name]
            else:
                old.pop(name, None)
    return list({str(change): change for change in found}.values())


def _groups(optimizers: Iterable[Optimizer]) -> list[dict[str, Any]]:
    return [group for one in optimizers for group in one.param_groups]


def _describe_optimizer(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    groups = []
    for group in optimizer.param_groups:
        values = {name: _plain(value) for name, value in group.items() if name != "params"}
        if "initial_lr" in values:  # the rate before the schedule
            values["lr"] = values.pop("initial_lr")
        weights = [names.get(id(parameter), "?") for parameter in group["params"]]
        groups.append({"weights": weights, "values": values})
    return {"class": _path(optimizer), "groups": groups}


def _describe_schedule(config: LRSchedulerConfig) -> dict[str, Any]:
    return {
        "class": _path(config.scheduler),
        "interval": config.interval,
        "frequency": config.frequency,
        "monitor": config.monitor,
        "arguments": _plain(_attributes(config.scheduler)),
    }


def _attributes(schedule: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(schedule).items() if name not in _FOLLOWS_THE_RATE}


def _plain(value: Any, depth: int = 0) -> Any:
    """As numbers, texts, lists and dictionaries, which every checkpoint may hold."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return value.tolist()
    inner = partial(_plain, depth=depth + 1)
    if depth < _DEEPEST and isinstance(value, (list, tuple)):
        return [inner(one) for one in value]
    if depth < _DEEPEST and isinstance(value, Mapping):
        return {str(name): inner(one) for name, one in value.items()}
    if depth < _DEEPEST and inspect.isfunction(value):
        taken = inspect.getclosurevars(value).nonlocals
        return {name: inner(taken[name]) for name in sorted(taken)}
    if depth < _DEEPEST and isinstance(value, LRScheduler):  # in another
        return {"class": _path(value)} | inner(_attributes(value))
    return _path(value)


def _path(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _check_states(
    checkpoint: Mapping[str, Any], optimizers: list[Optimizer], *, known: bool
) -> None:
    states = checkpoint["optimizer_states"]
    found = [[len(group["params"]) for group in state["param_groups"]] for state in states]
    made = [[len(group["params"]) for group in one.param_groups] for one in optimizers]
    if found != made:
        raise InputError(
            f"the optimizer has parameter groups of {_counts(made)} weights; the checkpoint was "
            f"trained with {_counts(found)} (model.lr_factors, and which weights are trained): "
            f"{INSTEAD}"
        )
    for state, optimizer in zip(states, optimizers, strict=True):
        missing = optimizer.defaults.keys() - state["param_groups"][0].keys()
        if missing and not known:
            raise InputError(
                f"model.optimizer is {_path(optimizer)}; the checkpoint was trained with one "
                f"without {sorted(missing)[0]}: {INSTEAD}"
            )


def _optimizer_changes(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    if old["class"] != new["class"]:
        raise InputError(
            f"model.optimizer is {new['class']}; the checkpoint was trained with {old['class']}: "
            f"{INSTEAD}"
        )
    pairs = list(zip(old["groups"], new["groups"], strict=True))
    for one, other in pairs:
        if one["weights"] != other["weights"]:
            moved = sorted(set(one["weights"]) ^ set(other["weights"])) or one["weights"]
            raise InputError(
                f"{moved[0]} is in another parameter group of the optimizer than in the checkpoint "
                f"(model.lr_factors): {INSTEAD}"
            )
    found = []
    for one, other in pairs:
        values, others = one["values"], other["values"]
        for name in sorted(values.keys() | others.keys()):
            change = Change(f"optimizer.{name}", values.get(name), others.get(name))
            if change.old == change.new:
                continue
            state = name in _NEEDS_OTHER_STATE or (
                name == "momentum" and not change.old and new["class"] == _class_path(RMSprop)
            )
            if state:
                raise InputError(
                    f"model.optimizer.{name} is {change.new}; the checkpoint was trained with "
                    f"{change.old}: {INSTEAD}"
                )
            found.append(change)
    return found


def _schedule_changes(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[Change]:
    found: list[Change] = []
    nothing: dict[str, Any] = {}
    for one, other in zip_longest(old, new, fillvalue=nothing):
        if one.get("class") != other.get("class"):
            found.append(Change("lr_scheduler", one.get("class"), other.get("class")))
            continue
        found += changed_options(
            *({f"lr_scheduler.{n}": v for n, v in _numbers(it).items()} for it in (one, other))
        )
    return found


def _numbers(schedule: dict[str, Any]) -> dict[str, Any]:
    """The values of a described schedule by the last word of their names."""
    flat: dict[str, Any] = {}
    for name, value in {**schedule, **schedule["arguments"], "arguments": None}.items():
        _flatten(name, value, flat)
    return {name.rpartition(".")[2]: value for name, value in flat.items()}


def _state_at_checkpoint(
    checkpoint: dict[str, Any], configured: dict[str, Any], number: int, trainer: Trainer
) -> dict[str, Any]:
    """The state that a new schedule would have at the checkpoint; its optimizer gets the rates."""
    config = trainer.lr_scheduler_configs[number]
    schedule, new = config.scheduler, _describe_schedule(config)
    known = dict(enumerate(configured["schedules"])).get(number, {})
    saved = dict(enumerate(checkpoint["lr_schedulers"])).get(number, {})
    if config.reduce_on_plateau:
        state = schedule.state_dict()
        if known.get("class") == new["class"]:
            old = known["arguments"]
            state = saved | {n: state[n] for n, v in new["arguments"].items() if v != old.get(n)}
            _reduce_alike(
                checkpoint, configured, trainer.optimizers.index(schedule.optimizer), trainer
            )
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


def _reduce_alike(
    checkpoint: dict[str, Any], configured: dict[str, Any], number: int, trainer: Trainer
) -> None:
    """Reduce an optimizer's rates by as much as those of the checkpoint were reduced."""
    saved = checkpoint["optimizer_states"][number]["param_groups"]
    began = configured["optimizers"][number]["groups"]
    for now, old, first in zip(trainer.optimizers[number].param_groups, saved, began, strict=True):
        now["lr"] = now["lr"] * old["lr"] / first["values"]["lr"]


def _steps(checkpoint: Mapping[str, Any], config: LRSchedulerConfig) -> int:
    """How often a schedule would have advanced until the checkpoint."""
    if config.interval == "step":
        return int(checkpoint["global_step"]) // config.frequency
    loop = checkpoint["loops"]["fit_loop"]
    count, batches = loop["epoch_progress"]["current"], loop["epoch_loop.batch_progress"]
    ends = count["processed"] < count["ready"] and batches["is_last_batch"]
    return (int(count["processed"]) + bool(ends)) // config.frequency


def _class_path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _counts(groups: list[list[int]]) -> str:
    return " and ".join("+".join(map(str, sizes)) for sizes in groups)


def _written(value: Any) -> str:
    return "none" if value is None else str(value)
