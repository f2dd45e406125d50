"""The words behind a command, checked before anything is imported that takes seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml

from itmkit.checks import InputError, did_you_mean
from itmkit.configs import config_names, config_path

#: options of fit, validate, test and predict that stand alone
SINGLE = (
    "ckpt_path config h help init_from init_strict name print_config seed_everything untrained"
).split()
#: and those that have options of their own, such as ``--trainer.max_epochs``
SECTIONS = ("model", "data", "trainer", "checkpoint", "last")


def check_words(words: Sequence[str]) -> None:
    """Raise for what no command takes: an unknown option, a word without one, a broken file.

    Args:
        words: behind ``fit``, ``validate``, ``test`` or ``predict``.

    Raises:
        InputError: with the word, and the closest that is known.
        FileNotFoundError: a ``--config`` is neither a file nor a shipped configuration.
    """
    option, waits = "", False  # the last option, and whether its value is still to come
    for word in words:
        if word.startswith("--") or word in ("-c", "-h"):
            option, equals, value = word.partition("=")
            _check_option(option)
            waits = not equals
            if equals and option == "--config":
                _check_config(value)
        elif waits:
            waits = False
            if option in ("-c", "--config"):
                _check_config(word)
        else:
            known = word.removesuffix(".yaml") in config_names() or Path(word).is_file()
            hint = f". Did you mean '--config {word}'?" if known else "; expected an option"
            raise InputError(f"unexpected '{word}'{hint}")


def with_config_paths(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Resolve the configurations and put them first: an option wins wherever it stands.

    Args:
        words: a command and what is behind it.

    Returns:
        The words, and the names of the configurations without folder and ending.
    """
    command, rest = words[0], iter(words[1:])
    paths, others = [], []
    for word in rest:
        option, equals, value = word.partition("=")
        if option in ("-c", "--config"):
            paths.append(config_path(value if equals else next(rest, "")))
        else:
            others.append(word)
    front = [f"--config={path}" for path in paths]
    return [command, *front, *others], [path.stem for path in paths]


def _check_option(option: str) -> None:
    name = option.lstrip("-")
    root = re.split(r"[.+]", name)[0]
    rest = name.removeprefix(root)
    if root in SECTIONS or root in SINGLE or name == "c":
        return
    known = [f"--{one}" for one in SINGLE] + [f"--{one}{rest}" for one in SECTIONS]
    hint = did_you_mean(f"--{name}", known)
    starts = ", ".join(f"--{one}" for one in SECTIONS)
    raise InputError(f"unknown option '{option}'; those of sections start with {starts}{hint}")


def _check_config(name: str) -> None:
    path = config_path(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"config '{path}' is not text in UTF-8: {error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or error
        raise InputError(f"config '{path}'{where}: {problem}") from error
    if not isinstance(content, Mapping):
        held = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise InputError(f"config '{path}' {held}; expected {', '.join(SECTIONS[:3])}: …")
    known = (*SECTIONS, *SINGLE)
    for key in content:
        if str(key).partition(".")[0] not in known:
            raise InputError(
                f"config '{path}' has an unknown key '{key}'"
                + (did_you_mean(str(key), known) or f"; expected one of {', '.join(sorted(known))}")
            )
