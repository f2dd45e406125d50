"""Which errors a user can fix, and their messages in one line."""

from __future__ import annotations

import os
import re
import select
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from itmkit.checks import InputError, constructor_errors, raised_in

_LONGEST = 2000  # characters of a message
_WORKER_GONE = re.compile(r"DataLoader worker (\(pid|was killed)")
_PROCESS_GONE = re.compile(
    r"Connection (closed|reset) by peer|Connection was likely closed|Broken pipe"
    r"|remote process exited"
)
_WORKER = re.compile(r"Caught \w+ in DataLoader worker process \d+\.\s")
#: where Lightning checks what a Trainer is asked for; the logging of a system is code, not options
_TRAINER_SETUP = re.compile(
    r"lightning\.(pytorch\.(trainer(?!\.connectors\.logger_connector)|accelerators|callbacks|loggers"
    r"|plugins|profilers|strategies)|fabric\.(accelerators|plugins|strategies))\b"
)


def fail(message: str) -> NoReturn:
    """Say what is wrong in one line on stderr and leave with exit status 2."""
    print(f"itmkit: error: {message}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Turn errors that a user can fix into one line; all others keep their traceback.

    With the environment variable ``ITMKIT_DEBUG=1`` every error keeps its traceback.
    """
    try:
        with constructor_errors(), _one_line_warnings():
            try:
                yield
            finally:
                sys.stdout.flush()
    except KeyboardInterrupt:
        print("itmkit: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and not _is_read(sys.stdout):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # flushed once more
            sys.exit(1)
        message = one_line(error)
        if message is None or os.environ.get("ITMKIT_DEBUG") == "1":
            raise
        fail(message)


def _is_read(stream: TextIO) -> bool:
    """Whether the other end of a pipe is open; of ``itmkit configs | head -1`` it soon is not."""
    poll = select.poll()
    poll.register(stream.fileno(), 0)  # no events: poll always reports errors
    return not poll.poll(0)


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Show warnings to users, which itmkit raises, without the line of code that raised them."""
    package, before = str(Path(__file__).parents[1]), warnings.formatwarning

    def formatted(*args: Any, **named: Any) -> str:
        message, category, filename = args[:3]
        if category is UserWarning and filename.startswith(package):
            return f"itmkit: warning: {_line(str(message))}\n"
        return before(*args, **named)

    warnings.formatwarning = formatted
    try:
        yield
    finally:
        warnings.formatwarning = before


def one_line(error: Exception) -> str | None:
    """The message of an error that a user can fix, None for any other.

    Users can fix: files and network (``OSError``), what itmkit refuses (``InputError``), a Trainer
    or optimizer that cannot be built as configured, a killed process of the data, and what the
    other processes see when one of a run ends.

    Args:
        error: the error as caught, with its traceback.

    Returns:
        One line of text, or None.
    """
    text = str(error)
    if _WORKER.match(text):  # raised in a DataLoader's worker: its traceback came along as text
        text = text.rpartition(f"{type(error).__name__}: ")[2]
    if isinstance(error, OSError):
        return _line(text if error.filename is None else f"{error.strerror}: '{error.filename}'")
    if isinstance(error, InputError) or _is_refused_option(error):
        return _line(text)
    if isinstance(error, RuntimeError) and _PROCESS_GONE.search(text):
        return "another process of this run has ended; its own error says why"
    if isinstance(error, RuntimeError) and _WORKER_GONE.match(text):
        hint = "a process that reads the data was killed; where memory is short, fewer may do"
        return _line(f"{hint} (data.num_workers): {text}")
    return None


def _is_refused_option(error: Exception) -> bool:
    """Whether Lightning or torch refused an option of the Trainer, or of an optimizer or schedule.

    Where their errors have no type of their own, the place tells: a module that sets a Trainer up,
    the set-up of the training loop, or a constructor in ``torch.optim`` with what that calls there.
    """
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    if lightning is not None and isinstance(error, lightning.MisconfigurationException):
        return True
    frames = raised_in(error)
    if isinstance(error, TypeError):  # elsewhere it is a hook that takes other arguments
        kinds = ("lightning.pytorch.trainer.trainer", "__init__") in frames
    else:
        kinds = isinstance(error, (ValueError, RuntimeError, ImportError))
    if not frames or not kinds:
        return False
    module, function = frames[-1]
    if module.startswith("torch.optim."):
        return any(name == "__init__" for where, name in frames if where.startswith("torch.optim."))
    in_loop = (module, function) == ("lightning.pytorch.loops.fit_loop", "setup_data")
    return in_loop or _TRAINER_SETUP.match(module) is not None


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
