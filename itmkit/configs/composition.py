"""Files and options put together: one configuration, and the options that a parser is given."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import yaml

from itmkit.checks import InputError
from itmkit.configs import merge
from itmkit.configs.agreement import MADE, class_of, missing_values, with_option
from itmkit.configs.short_options import SHORT_OPTIONS, expanded

#: the name of an option without its dashes, and the text of its value; None for one without
Option = tuple[str, str | None]


class Composition(NamedTuple):
    """What files and options say together.

    Args:
        config: all of it, sections by name.
        options: the same as a parser understands it: the merged files as ``config``, then full
            options. Those that are given come first and win, wherever they stood.
    """

    config: dict[str, Any]
    options: list[Option]

    @property
    def words(self) -> list[str]:
        """The options as words of a command line."""
        return [f"--{name}" if text is None else f"--{name}={text}" for name, text in self.options]


def compose(
    files: Sequence[Mapping[str, Any]],
    options: Sequence[Option],
    follows: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
) -> Composition:
    """Merge configurations, expand short options and fill in what follows from other values.

    Args:
        files: contents of configurations; the later ones win.
        options: given beside them; they win.
        follows: further values, by option, that follow from a configuration.

    Raises:
        InputError: values contradict each other.

    Example:
        >>> from itmkit.configs import load_config
        >>> found = compose([load_config("mate/precomp")], [("features", "DIR")])
        >>> found.words[1:3]
        ['--data.dataset.root=DIR', '--model.text_encoder.dim=1024']
    """
    merged: dict[str, Any] = reduce(merge, map(dict, files), {})
    short = {name: _parsed(text) for name, text in options if name in SHORT_OPTIONS}
    full = [one for one in options if one[0] not in SHORT_OPTIONS]
    full = [*_classes_of_arguments(full, merged), *full]
    config, given = merged, {}
    for name, text in full:
        if text is not None:
            given[name.replace(".init_args", "")] = value = _parsed(text)
            config = with_option(config, name, value)
    added = expanded(short, config)
    for name, value in added.items():
        if given.get(name, value) != value:
            raise InputError(
                f"{name} is {given[name]!r}, and {value!r} by --{', --'.join(short)}; expected one "
                "value"
            )
    config = _with_options(config, added)
    added |= missing_values(config)
    config = _with_options(config, added)
    if follows is not None and config:
        more = follows(config)
        added, config = added | more, _with_options(config, more)
    front = [("config", yaml.safe_dump(merged, sort_keys=False, allow_unicode=True))]
    texts = {name: one if isinstance(one, str) else json.dumps(one) for name, one in added.items()}
    return Composition(config, [*(front if merged else ()), *full, *texts.items()])


def _with_options(config: dict[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        config = with_option(config, name, value)
    return config


def _parsed(text: str | None) -> Any:
    try:
        return yaml.safe_load(text or "")
    except yaml.YAMLError:
        return text


def _classes_of_arguments(options: Sequence[Option], config: Mapping[str, Any]) -> list[Option]:
    """The classes that options give arguments to and nothing names, such as a tokenizer's."""
    names = [name.replace(".init_args", "") for name, _ in options]
    return [
        (owner, class_path)
        for owner, class_path in MADE.items()
        if class_of(config, owner) is None
        and not {owner, f"{owner}.class_path"} & set(names)
        and any(name.startswith(f"{owner}.") for name in names)
    ]
