"""The words after a command: checked before slow imports, and merged with configurations."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from itmkit.checks import InputError, did_you_mean
from itmkit.cli.options import OPTIONS, SECTIONS
from itmkit.configs import config_names, config_path, load_config, merge
from itmkit.configs.agreement import MADE, class_of, missing_values, with_option
from itmkit.configs.short_options import SHORT_OPTIONS, expanded


def check_words(words: Sequence[str]) -> None:
    """Raise for what no command takes: an unknown option, a word without one, a broken file.

    Args:
        words: after ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        InputError: with the word, and the closest that is known.
        FileNotFoundError: a ``--config`` is neither a file nor a shipped configuration.
    """
    option, waits = "", False  # the last option, and whether its value is still to come
    for word in words:
        if _is_option(word):
            option, equals, value = word.partition("=")
            _check_option(option)
            waits = not equals
            if equals and option == "--config":
                _read(value)
        elif waits:
            waits = False
            if option in ("-c", "--config"):
                _read(word)
        else:
            known = word.removesuffix(".yaml") in config_names() or Path(word).is_file()
            hint = f". Did you mean '--config {word}'?" if known else "; expected an option"
            raise InputError(f"unexpected '{word}'{hint}")


def composed(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words that jsonargparse understands: one whole configuration, then full options alone.

    Configurations are merged and come first, so an option wins wherever it stands. Short options
    are expanded, and values that follow from others are filled in.

    Args:
        words: a command and its options.

    Returns:
        The words, and the names of the configurations without folder and ending.

    Raises:
        InputError: values contradict each other, see :mod:`itmkit.configs.agreement`.
    """
    whole, stems, _ = _composition(words)
    return whole, stems


def composed_config(words: Sequence[str]) -> dict[str, Any]:
    """The configuration that :func:`composed` puts in words: files, options, what follows."""
    return _composition(words)[2]


def _composition(words: Sequence[str]) -> tuple[list[str], list[str], dict[str, Any]]:
    options = split_options(words[1:])
    paths = [config_path(value or "") for name, value in options if name in ("config", "c")]
    short = {name: _parsed(value) for name, value in options if name in SHORT_OPTIONS}
    full = [one for one in options if one[0] not in (*SHORT_OPTIONS, "config", "c")]
    config: dict[str, Any] = {}
    for path in paths:
        config = merge(config, _read(path))
    full = [*_classes_of_arguments(full, config), *full]
    front = [("config", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))] * bool(config)
    given = {}
    for name, value in full:
        if value is not None and not name.endswith("+"):
            given[name.replace(".init_args", "")] = parsed = _parsed(value)
            config = with_option(config, name, parsed)
    added = expanded(short, config)
    for name, value in added.items():
        if given.get(name, value) != value:
            raise InputError(
                f"{name} is {given[name]!r}, and {value!r} by --{', --'.join(short)}; expected one "
                "value"
            )
        config = with_option(config, name, value)
    added |= missing_values(config)
    if words[0] == "fit" and config:
        added |= _by_size(config, printing=any(name == "print_config" for name, _ in full))
    for name, value in added.items():
        config = with_option(config, name, value)
    texts = {name: one if isinstance(one, str) else json.dumps(one) for name, one in added.items()}
    ordered = [*front, *full, *texts.items()]
    complete = [f"--{name}" if value is None else f"--{name}={value}" for name, value in ordered]
    return [words[0], *complete], [path.stem for path in paths], config


def completed_config(words: Sequence[str]) -> dict[str, Any]:
    """The configuration that options give: merged, expanded and filled in as :func:`composed` does.

    Args:
        words: options of ``itmkit fit``.

    Raises:
        InputError: values contradict each other.
    """
    put, _ = composed(["doctor", *words])
    config: dict[str, Any] = {}
    for name, value in split_options(put[1:]):
        parsed = _parsed(value)
        config = parsed if name == "config" else with_option(config, name, parsed)
    return config


def _classes_of_arguments(
    options: Sequence[tuple[str, str | None]], config: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """The classes that options give arguments to and nothing names, such as a tokenizer's."""
    names = [name.replace(".init_args", "") for name, _ in options]
    return [
        (owner, class_path)
        for owner, class_path in MADE.items()
        if class_of(config, owner) is None
        and not {owner, f"{owner}.class_path"} & set(names)
        and any(name.startswith(f"{owner}.") for name in names)
    ]


def _by_size(config: Mapping[str, Any], *, printing: bool) -> dict[str, Any]:
    from lightning.pytorch.utilities import rank_zero_only

    from itmkit.training.by_size import follows_size, values_by_size

    if not follows_size(config):
        return {}
    try:
        found, chosen = values_by_size(config)
    except FileNotFoundError:
        if printing:  # the configuration alone, of data that is elsewhere
            return {}
        raise
    rank_zero_only(print)(chosen, file=sys.stderr)
    return found


def split_options(words: Sequence[str]) -> list[tuple[str, str | None]]:
    """Names of options without their dashes, with what follows each, as one word or two.

    Example:
        >>> split_options(["--name=a", "--print_config", "--data.seed", "3"])
        [('name', 'a'), ('print_config', None), ('data.seed', '3')]
    """
    found: list[tuple[str, str | None]] = []
    for word in words:
        if _is_option(word):
            name, equals, value = word.partition("=")
            found.append((name.lstrip("-"), value if equals else None))
        elif found:
            found[-1] = (found[-1][0], word)
    return found


def _is_option(word: str) -> bool:
    return word.startswith("--") or word in ("-c", "-h")


def _parsed(value: str | None) -> Any:
    try:
        return yaml.safe_load(value or "")
    except yaml.YAMLError:
        return value


def _check_option(option: str) -> None:
    name = option.lstrip("-")
    root = re.split(r"[.+]", name)[0]
    rest = name.removeprefix(root)
    alone = (*OPTIONS, *SHORT_OPTIONS)
    if root in SECTIONS or (root in alone and not rest) or name == "c":
        return
    known = [f"--{one}" for one in alone] + [f"--{one}{rest}" for one in SECTIONS]
    hint = did_you_mean(f"--{name}", known)
    starts = ", ".join(f"--{one}" for one in SECTIONS)
    raise InputError(f"unknown option '{option}'; those of sections start with {starts}{hint}")


def _read(name: str | Path) -> dict[str, Any]:
    """A configuration with known keys alone."""
    content = load_config(name)
    known = (*SECTIONS, *OPTIONS)
    for key in content:
        if key.partition(".")[0] not in known:
            raise InputError(
                f"config '{config_path(str(name))}' has an unknown key '{key}'"
                + (did_you_mean(key, known) or f"; expected one of {', '.join(sorted(known))}")
            )
    return content
