"""``itmkit configs``: what there is to start from."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import yaml

from itmkit.checks import InputError
from itmkit.configs import comment, config_names, describe, load_config


def configs(words: Sequence[str]) -> None:
    """List the shipped configurations, or print one whole: ``itmkit configs show NAME``."""
    parser = argparse.ArgumentParser("itmkit configs", description=configs.__doc__)
    parser.add_argument("action", nargs="?", help="'show', or nothing for a list")
    parser.add_argument("name", nargs="?", help="name of a configuration, or a file")
    given = parser.parse_args(words)
    if given.action is None:
        for name in config_names():
            about, measured = describe(name)
            print(f"{name:22}{about}" + (f"\n{'':22}measured: {measured}" if measured else ""))
    elif given.action == "show" and given.name is not None:
        from itmkit.configs.agreement import completed

        config = completed(load_config(given.name))
        lines = [f"# {line}".rstrip() for line in comment(given.name).splitlines()]
        print(*lines, yaml.safe_dump(config, sort_keys=False, allow_unicode=True), sep="\n", end="")
    else:
        after = " ".join(words)
        raise InputError(f"unexpected '{after}' after configs; expected nothing, or show NAME")
