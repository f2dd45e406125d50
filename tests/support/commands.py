"""Commands of the command line as real processes, which can be killed at a moment that is told."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

from fork_server import start

TIMEOUT = 90.0  # seconds


class Kill(NamedTuple):
    """SIGKILL of a process by itself at the n-th time that it comes to a place.

    Places: ``step`` (the start of a training batch), ``validate`` (of a validation batch),
    ``score`` (of the scores of a gallery), ``write`` (half of a checkpoint is written), ``rename``
    (before it gets its name), ``renamed`` (after that), ``log`` (before a row of metrics.csv is
    written), ``table`` (half of metrics.csv is written anew, with more columns).
    """

    place: str
    count: int


class Ended(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    out: str
    err: str
    seconds: float


class Command:
    """A running command.

    Args:
        folder: working directory; what it writes to stdout and stderr is kept beside it.
        arguments: words behind ``itmkit``.
        kill: moments at which it sends itself a signal.
        with_signal: that signal.
        environment: further environment variables.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        kill: Kill | Sequence[Kill] = (),
        with_signal: int = signal.SIGKILL,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.start = time.monotonic()
        self.files = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
        for path in self.files:
            path.write_text("")
        out, err = self.files
        kills = [kill] if isinstance(kill, Kill) else kill
        self.process = start(
            *(_command, folder, arguments, kills, with_signal),
            out=out,
            err=err,
            environment=environment or {},
        )

    @property
    def pid(self) -> int:
        return self.process.pid or 0

    def end(self, timeout: float = TIMEOUT) -> Ended:
        """Wait for its end; it is killed where it takes too long."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise TimeoutError(f"a command took more than {timeout:.0f} s: {self._told()[1]}")
        return Ended(self.process.exitcode, *self._told(), time.monotonic() - self.start)

    def _told(self) -> tuple[str, str]:
        out, err = (path.read_text(errors="replace") for path in self.files)
        return out, err


def run_command(folder: Path, *arguments: str, **options: Any) -> Ended:
    """Run a command to its end, see :class:`Command`."""
    return Command(folder, *arguments, **options).end()


def _command(
    folder: Path, arguments: tuple[str, ...], kills: Sequence[Kill], with_signal: int
) -> None:
    os.chdir(folder)
    sys.argv = ["itmkit", *arguments]
    from itmkit.cli import main

    for kill in kills:
        _arm(kill, with_signal)
    main(list(arguments))


def _arm(kill: Kill, with_signal: int) -> None:
    from itmkit import _internals
    from itmkit.systems import Matcher, evaluation
    from itmkit.training import checkpoints, loggers

    left = kill.count

    def reached() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), with_signal)

    def before(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        @wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            reached()
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    class Half:
        """A file that has half of what is written when the moment is reached."""

        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, content: Any) -> None:
            middle = len(content) // 2
            self.file.write(content[:middle])
            self.file.flush()
            reached()
            self.file.write(content[middle:])

    def half(owner: Any) -> None:
        original = owner.atomic_write

        @contextmanager
        def written(target: Path) -> Iterator[Half]:
            with original(target) as file:
                yield Half(file)

        owner.atomic_write = written

    def around_rename(*, after: bool) -> None:
        original = os.replace

        def replace(source: Any, target: Any) -> None:
            matters = str(target).endswith(".ckpt")
            if matters and not after:
                reached()
            original(source, target)
            if matters and after:
                reached()

        os.replace = replace

    places: dict[str, Callable[[], None]] = {
        "step": lambda: before(Matcher, "training_step"),
        "validate": lambda: before(Matcher, "validation_step"),
        "score": lambda: before(evaluation, "rank_queries"),
        "write": lambda: half(checkpoints),
        "table": lambda: half(_internals),
        "rename": lambda: around_rename(after=False),
        "renamed": lambda: around_rename(after=True),
        "log": lambda: before(loggers.MetricsTable, "save"),
    }
    places[kill.place]()
