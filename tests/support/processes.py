"""The one way in which tests start several processes: all end within a time, or the test fails."""

from __future__ import annotations

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NoReturn, Protocol

import pytest
import torch
import torch.distributed as dist
from fork_server import start

SUPPORT = Path(__file__).parent
TIMEOUT = 90.0  # seconds


def run_ranks(
    script: str | Path, *arguments: object, size: int = 2, timeout: float = TIMEOUT
) -> None:
    """Run a script as some processes that know their ``RANK`` and may meet, see :func:`join`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",  # to Lightning: the processes are started already
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "GROUP_RANK": "0",
    }
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    words = [str(script), *map(str, arguments)]
    _run(
        [
            lambda err, environment=environment: _Forked(
                start(_script, words, out=os.devnull, err=err, environment=environment)
            )
            for environment in ranks
        ],
        timeout,
    )


def run_all(
    commands: Sequence[tuple[list[str], dict[str, str]]], *, timeout: float = TIMEOUT
) -> None:
    """Run commands side by side, each with some environment variables of its own.

    The test fails with what they wrote to stderr as soon as one of them fails, or when they are
    not done in time. They and all that they started are then killed.
    """
    path = [str(SUPPORT.parents[1]), str(SUPPORT), os.environ.get("PYTHONPATH")]
    found = os.pathsep.join(filter(None, path))
    common = {**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1"}

    def started(err: str, command: list[str], own: dict[str, str]) -> subprocess.Popen[bytes]:
        with open(err, "wb") as file:
            return subprocess.Popen(
                command,
                env=common | own,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )

    _run([partial(started, command=command, own=own) for command, own in commands], timeout)


def _script(words: list[str]) -> None:
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).parent))
    runpy.run_path(words[0], run_name="__main__")


class _Running(Protocol):
    """What is used of ``subprocess.Popen``."""

    pid: int

    def poll(self) -> int | None: ...
    def kill(self) -> None: ...
    def wait(self) -> int: ...


class _Forked:
    """A process of the fork server."""

    def __init__(self, process: BaseProcess) -> None:
        self.process = process
        self.pid = process.pid or 0
        self.kill = process.kill

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode or 0


def _run(starts: Sequence[Callable[[str], _Running]], timeout: float) -> None:
    """Start processes, each with a file for its errors, and see to their end."""
    with tempfile.TemporaryDirectory() as folder:
        # Not pipes: one that nobody reads may fill up.
        errors = [Path(folder) / str(number) for number in range(len(starts))]
        processes = [begin(str(error)) for begin, error in zip(starts, errors, strict=True)]
        end = time.monotonic() + timeout
        try:
            codes = [process.poll() for process in processes]
            while None in codes and not any(codes) and time.monotonic() < end:
                time.sleep(0.02)
                codes = [process.poll() for process in processes]
        finally:
            for process in processes:
                if process.poll() != 0:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGKILL)
                    process.kill()  # one that has no group of its own yet
                process.wait()
        told = [
            error.read_text(errors="replace")[-4000:] if error.exists() else "" for error in errors
        ]
    if any(code != 0 for code in codes):
        states = ["still running" if code is None else f"exit code {code}" for code in codes]
        parts = [f"{state}:\n{text}" for state, text in zip(states, told, strict=True)]
        pytest.fail(f"processes (at most {timeout:.0f} s)\n" + "\n".join(parts), pytrace=False)


def join(folder: str | Path) -> int:
    """Called in a script of :func:`run_ranks`: enter the process group; returns the rank.

    Args:
        folder: where the processes find each other, the same for all and new for every run.
    """
    torch.set_num_threads(1)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=60),
    )
    return rank


def leave() -> NoReturn:
    """Called at the end of a script that entered by :func:`join`: all done, on all ranks.

    Gloo's threads may still run when Python takes itself down, and then abort the process
    ("terminate called without an active exception"); a process that has done its work just ends.
    """
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)
