"""The words after a command: checked before slow imports, and merged with configurations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from itmkit.checks import InputError, did_you_mean
from itmkit.cli.options import OPTIONS, SECTIONS
from itmkit.configs import config_names, config_path, load_config
from itmkit.configs.composition import Composition, compose
from itmkit.configs.short_options import SHORT_OPTIONS


def check_words(words: Sequence[str], own: Sequence[str] = ()) -> None:
    """Raise for what no command takes: an unknown option, a word without one, a broken file.

    Args:
        words: after ``fit``, ``validate``, ``test`` or ``predict``.
        own: further options of the command.

    Raises:
        InputError: with the word, and the closest that is known.
        FileNotFoundError: a ``--config`` is neither a file nor a shipped configuration.
    """
    option, waits = "", False  # the last option, and whether its value is still to come
    for word in words:
        if _is_option(word):
            option, equals, value = word.partition("=")
            _check_option(option, own)
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


def composed(words: Sequence[str]) -> Composition:
    """What a command and its options say together, see :func:`itmkit.configs.composition.compose`.

    Short options are expanded and values that follow from others are filled in; for ``fit``, those
    that follow from the size of the data too.

    Raises:
        InputError: values contradict each other, see :mod:`itmkit.configs.agreement`.
    """
    options = split_options(words[1:])
    files = [_read(value or "") for name, value in options if name in ("config", "c")]
    others = [one for one in options if one[0] not in ("config", "c")]
    printing = any(name == "print_config" for name, _ in options)
    follows = partial(_by_size, printing=printing) if words[0] == "fit" else None
    return compose(files, others, follows)


def config_stems(words: Sequence[str]) -> list[str]:
    """The names of the configurations that words give, without folder and ending."""
    names = [value or "" for name, value in split_options(words) if name in ("config", "c")]
    return [config_path(name).stem for name in names]


def _by_size(config: Mapping[str, Any], *, printing: bool) -> dict[str, Any]:
    from itmkit.runs.by_size import follow_size  # slow, and for few commands

    return follow_size(config, may_be_elsewhere=printing)


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


def _check_option(option: str, own: Sequence[str]) -> None:
    name = option.lstrip("-")
    root = re.split(r"[.+]", name)[0]
    rest = name.removeprefix(root)
    alone = (*OPTIONS, *SHORT_OPTIONS, *own)
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
