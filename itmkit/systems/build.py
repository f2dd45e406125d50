"""Models and data from their sections of a configuration."""

from __future__ import annotations

import sys
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lightning.pytorch.cli import LightningArgumentParser
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from itmkit.checks import InputError, constructor_errors
from itmkit.nn.weights import stored_by
from itmkit.pretrained import weights_follow


def build(config: Mapping[str, Any], bases: Mapping[str, type], *, source: str) -> dict[str, Any]:
    """Build what the sections of a configuration describe.

    Args:
        config: name of a section → ``{"class_path": …, "init_args": …}``.
        bases: name of a section → class that what is built must be of.
        source: file or argument that the configuration is from, for errors.

    Returns:
        Name of a section → what was built of it.

    Raises:
        InputError: no such section, or one that describes nothing of its class.
    """
    parser = LightningArgumentParser(exit_on_error=False)
    for name, base in bases.items():
        parser.add_subclass_arguments(base, name, fail_untyped=False)
    for name in bases:
        if not isinstance(config.get(name), Mapping):
            raise InputError(f"{source}: {name} is {config.get(name)!r}; expected a section")
    try:
        parsed = parser.parse_object({name: config[name] for name in bases})
    except ArgumentError as error:
        raise InputError(f"{source}: {error}") from error
    with constructor_errors():
        built = parser.instantiate(parsed)
    return {name: built[name] for name in bases}


def build_system(
    config: Mapping[str, Any],
    kind: type,
    arguments: Mapping[str, Any],
    *,
    source: str,
    trust: Sequence[str] | None = None,
) -> Any:
    """Build the system that the section of a checkpoint describes.

    Its ``model_config`` is what it was built from; none where the arguments are no plain data.

    Args:
        config: ``{"class_path": …, "init_args": …}``, whose class paths are checked first.
        kind: class that it must be of; where this derives from the described one, it is built.
        arguments: take the place of those of the section.
        source: of the section, for errors.
        trust: see :func:`check_class_paths`.

    Raises:
        InputError: another system, or a class path that is not allowed.
    """
    system = check_class_paths(config, source=source, trust=trust)
    config = {**config, "init_args": config.get("init_args", {}) | dict(arguments)}
    if kind is not system and issubclass(kind, system):
        config["class_path"] = f"{kind.__module__}.{kind.__qualname__}"
    elif not issubclass(system, kind):
        raise InputError(f"{source} is of the system {system.__name__}; expected {kind.__name__}")
    model = build({"model": config}, {"model": kind}, source=source)["model"]
    model.model_config = config if _is_plain(dict(arguments)) else None
    return model


def restore_system(
    checkpoint: Mapping[str, Any],
    kind: type,
    arguments: Mapping[str, Any],
    *,
    source: str,
    strict: bool = True,
    trust: Sequence[str] | None = None,
) -> Any:
    """The system of a checkpoint, as it was configured there, with its weights.

    Args:
        checkpoint: with a ``model_config``.
        kind: see :func:`build_system`.
        arguments: see :func:`build_system`.
        source: the checkpoint, for errors.
        strict: whether all weights, and no others, have to be there.
        trust: see :func:`check_class_paths`.

    Raises:
        InputError: a checkpoint of another system, weights that do not fit, or a class path that is
            not allowed.
    """
    config = checkpoint["model_config"]
    with stored_by(checkpoint.get("itmkit_version")), weights_follow(checkpoint.get("pretrained")):
        model = build_system(config, kind, arguments, source=source, trust=trust)
    model.on_load_checkpoint({**checkpoint, "source": source})
    model.load_state_dict(checkpoint["state_dict"], strict=strict)
    return model


def _is_plain(value: Any) -> bool:
    """Whether every checkpoint may hold it."""
    if isinstance(value, (Mapping, list)):
        return all(map(_is_plain, value.values() if isinstance(value, Mapping) else value))
    return value is None or isinstance(value, (bool, int, float, str))


def check_class_paths(
    section: Mapping[str, Any], *, source: str, trust: Sequence[str] | None = None
) -> Any:
    """The class that a section describes, which may be built without running what is unknown.

    Nothing is imported that this process has not imported already, but for itmkit, torch and what
    is trusted; and what is named there is a module, an optimizer or a schedule, unless it is
    itmkit's or trusted.

    Args:
        section: ``{"class_path": …, "init_args": …}``.
        source: file that it is from, for errors.
        trust: packages that may be named besides itmkit and torch; None: all that this process has
            imported.

    Raises:
        InputError: with the class path, and what may be done.
    """
    if not isinstance(section, Mapping) or not isinstance(section.get("class_path"), str):
        raise InputError(f"{source} has {section!r}; expected a class_path with its init_args")
    for path in _class_paths(section, source, trust):
        _resolve(path, source, trust)
    return _resolve(section["class_path"], source, trust)


def _class_paths(section: Any, source: str, trust: Sequence[str] | None) -> Iterator[str]:
    """All names in a section that jsonargparse would import."""
    if isinstance(section, list):
        for item in section:
            yield from _class_paths(item, source, trust)
    if not isinstance(section, Mapping):
        return
    for value in section.values():
        yield from _class_paths(value, source, trust)
    if not isinstance(path := section.get("class_path"), str):
        return
    yield path
    arguments = section.get("init_args")
    if not isinstance(arguments, Mapping):
        return
    hints = _hints(_resolve(path, source, trust))
    for name, value in arguments.items():  # "torch.optim.AdamW" is short for a class path
        if isinstance(value, str) and name in hints and not _may_be_text(hints[name]):
            yield value


def _hints(owner: Any) -> dict[str, Any]:
    """Types of the arguments of a class or function, ``Any`` where there is none.

    With those of the bases of a class, which ``**kwargs`` may be handed on to.
    """
    found: dict[str, Any] = {}
    for base in owner.__mro__ if isinstance(owner, type) else [owner]:
        maker = vars(base).get("__init__", None if isinstance(owner, type) else owner)
        try:
            hints, parameters = get_type_hints(maker), signature(maker).parameters.values()
        except (NameError, TypeError, ValueError):
            continue
        for one in parameters:
            if one.kind != one.VAR_KEYWORD:
                found.setdefault(one.name, hints.get(one.name, Any))
    return found


def _may_be_text(hint: Any) -> bool:
    if get_origin(hint) is Literal or hint in (str, Path, Any):
        return True
    return any(_may_be_text(part) for part in get_args(hint))


def _resolve(path: str, source: str, trust: Sequence[str] | None) -> Any:
    module_name, _, name = path.rpartition(".")
    package = module_name.partition(".")[0]
    if trust is not None and package not in ("itmkit", "torch", *trust):
        raise InputError(
            f"{source} names the class {path!r}; expected one of itmkit or torch, or "
            f"trust=[{package!r}], which imports that package"
        )
    trusted = trust is not None and package in trust
    if package == "itmkit" or module_name.startswith(("torch.nn", "torch.optim")) or trusted:
        with suppress(ModuleNotFoundError):
            import_module(module_name)
    found = getattr(sys.modules.get(module_name), name, None)
    if found is None:
        raise InputError(
            f"{source} names the class {path!r}; expected one of itmkit or torch, or one of a "
            "module that was imported before"
        )
    if trusted:
        return found
    known = (nn.Module, Optimizer, LRScheduler, ReduceLROnPlateau)
    if package != "itmkit" and (
        not issubclass(found, known)
        if isinstance(found, type)
        else package in {"torch", *sys.stdlib_module_names}
    ):
        raise InputError(
            f"{source} names {path!r}; expected a module, an optimizer or a schedule of its "
            "learning rate"
        )
    return found
