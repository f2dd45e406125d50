"""``itmkit doctor``: what this machine has and can do, and what a run would read or download."""

from __future__ import annotations

from collections.abc import Sequence

from itmkit.cli import COMMANDS
from itmkit.cli.arguments import check_words, composed
from itmkit.cli.help import command_help


def doctor(words: Sequence[str]) -> None:
    """Print versions, devices, extras and caches; with ``--config``, what that run would need."""
    if {"--help", "-h"} & set(words):
        print(command_help("doctor", COMMANDS["doctor"]))
        return
    check_words(words)
    config = composed(["doctor", *words]).config if words else None
    from itmkit.doctor import report

    print(report(config))
