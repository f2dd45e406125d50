"""New processes that need not import anything: forks of one that has imported it all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *("itmkit.cli.matcher_run", "itmkit.callbacks", "itmkit.data", "itmkit.losses"),
        *(
            "itmkit.systems",
            "pytest",
            "tensorboard.summary",
            "timm",
            "torch.testing",
            "transformers",
        ),
    ]
)


def start(
    target: Callable[..., None],
    *arguments: Any,
    out: str | Path,
    err: str | Path,
    environment: dict[str, str],
) -> BaseProcess:
    """Call a function in a new process, the first of a process group of its own.

    Args:
        target: function of a module.
        arguments: of that function.
        out: file for what it writes to stdout.
        err: file for what it writes to stderr.
        environment: further environment variables.
    """
    process = _context.Process(
        target=_child, args=(target, arguments, (out, err), {**os.environ, **environment})
    )
    process.start()
    return process


def _child(
    target: Callable[..., None],
    arguments: tuple[Any, ...],
    files: tuple[str | Path, str | Path],
    environment: dict[str, str],
) -> None:
    """Be what a new interpreter would be, and call the function."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for path, number in zip(files, (1, 2), strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(SUPPORT), str(SUPPORT.parents[1])]
    multiprocessing.set_start_method("fork", force=True)  # of the data's processes, as ever

    import torch
    from lightning.pytorch.utilities import rank_zero_only

    torch.set_num_threads(1)
    rank_zero_only.rank = int(environment.get("RANK", 0))  # which Lightning reads when imported
    target(*arguments)
