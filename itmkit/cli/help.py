"""``--help``, ``--help_trainer`` and ``--model.help``: each printed before anything is parsed."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from itmkit.checks import InputError, did_you_mean
from itmkit.cli.arguments import split_options
from itmkit.cli.options import OPTIONS, SECTIONS
from itmkit.configs import config_names, load_config, merge
from itmkit.configs.agreement import class_of, locate_class, short_names
from itmkit.configs.short_options import SHORT_OPTIONS

WIDTH = 100  # columns
_MEASURES = ("--ckpt_path RUN [options]", "--ensemble RUN RUN ... (see --ensemble --help)")
#: what is typed after each command, in each of its forms
USAGES = {
    "fit": ("--config NAME_OR_PATH [options]",),
    "validate": _MEASURES,
    "test": _MEASURES,
    "predict": ("--ckpt_path RUN [options]",),
    "doctor": ("[--config NAME_OR_PATH [options]]",),
}


def command_help(command: str, purpose: str) -> str:
    """Help of a command: the options of ours, and how to see the others."""
    short = {name: option.text for name, option in SHORT_OPTIONS.items()}
    sections = {f"{name}.ARGUMENT": text for name, text in SECTIONS.items()}
    classes = {
        f"{name}.help [CLASS]": f"Show the arguments of a class for {what}; without CLASS, those "
        "of the configured one."
        for name, what in (("model", "the model"), ("model.image_encoder", "any argument in it"))
    }
    names = textwrap.wrap(", ".join(config_names()), WIDTH - 2)
    lines = [
        *(
            f"{'       ' if number else 'usage: '}itmkit {command} {form}"
            for number, form in enumerate(USAGES[command])
        ),
        f"\n{purpose[0].upper()}{purpose[1:]}.",
        *("\noptions:", *_table(OPTIONS)),
        *("\nshort options, for configurations of photos and features:", *_table(short)),
        *("\nsections:", *_table(sections), *_table(classes)),
        "\nshipped configurations (itmkit configs):",
        *(f"  {line}" for line in names),
    ]
    return "\n".join(lines)


def trainer_help() -> str:
    """Help of the Trainer and of the checkpoints."""
    from lightning.pytorch import Trainer

    from itmkit.training.checkpoints import BestCheckpoint, LastCheckpoint

    sections = {"trainer": Trainer, "checkpoint": BestCheckpoint, "last": LastCheckpoint}
    return "\n".join(_arguments(name, kind) for name, kind in sections.items())


def class_help(option: str, name: str | None, config: Mapping[str, Any]) -> str:
    """Help of a class that may be given to an option.

    Args:
        option: such as ``model.image_encoder``.
        name: path of the class, or its name alone; None for the configured one, and where there
            is none the base of all for ``model`` and ``data``.
        config: the configuration.

    Raises:
        InputError: there is no such class.
    """
    base = {"model": "itmkit.systems.Matcher", "data": "itmkit.data.ImageTextData"}
    path = name or class_of(config, option) or base.get(option)
    if path is None:
        raise InputError(f"{option} has no class; expected --{option}.help CLASS, or a --config")
    found = locate_class(path)
    if not callable(found):
        hint = did_you_mean(path.rpartition(".")[2], short_names())
        raise InputError(f"{option} has no class {path!r}; expected one that can be imported{hint}")
    return _arguments(option, found)


def _arguments(option: str, kind: Any) -> str:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="itmkit", usage=f"--{option}.ARGUMENT VALUE", add_help=False)
    parser.add_class_arguments(kind, option, fail_untyped=False)
    text = re.sub(r":[\w:]+:`[~!]?([^`]*)`", r"\1", parser.format_help())  # roles of Sphinx
    return re.sub(r",\s+known\s+subclasses:[^)]*", "", text)


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    for name, text in rows.items():
        left = f"  --{name}"
        lines = textwrap.wrap(text, WIDTH - 30)
        if len(left) > 28:
            yield left
            left = ""
        for line in lines:
            yield f"{left:30}{line}"
            left = ""


def requested_help(command: str, words: Sequence[str], purpose: str) -> str | None:
    """The help that words ask for, None where they ask for none."""
    config: dict[str, Any] = {}
    for name, value in split_options(words):
        if name in ("config", "c"):
            config = merge(config, load_config(value or ""))
    for name, value in split_options(words):
        if name in ("help", "h"):
            return command_help(command, purpose)
        if name == "help_trainer":
            return trainer_help()
        if name.endswith(".help"):
            return class_help(name.removesuffix(".help"), value, config)
    return None
