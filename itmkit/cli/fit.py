"""``itmkit fit | validate | test | predict``: their words are checked before slow imports."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from itmkit.cli import COMMANDS
from itmkit.cli.arguments import check_words
from itmkit.cli.help import requested_help


def _run(command: str, words: Sequence[str]) -> None:
    if any(word.partition("=")[0] == "--ensemble" for word in words):
        from itmkit.cli.ensemble import run_ensemble

        run_ensemble(command, words)
        return
    check_words(words)
    if text := requested_help(command, words, COMMANDS[command]):
        print(text)
        return
    from itmkit.cli.matcher_run import run_command
    from itmkit.distributed import leave

    run_command(command, list(words))
    leave()


fit, validate, test, predict = (
    partial(_run, command) for command in ("fit", "validate", "test", "predict")
)
