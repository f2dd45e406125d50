"""The folder of one run: always a new one, removed if the run fails before it has begun."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from itmkit.checks import InputError


def check_name(name: str) -> None:
    """Raise unless ``name`` is that of a folder inside another, such as ``mate`` or ``mate/small``.

    Raises:
        InputError: an empty or absolute name, or one that leads out of the folder.
    """
    inside = os.path.normpath(name).split(os.sep)
    if not name.strip() or os.path.isabs(name) or inside[0] in (os.curdir, os.pardir):
        raise InputError(f"name is {name!r}; expected a folder inside that of all runs")


def claim(runs: Path, name: str, *, suffix: str = "") -> Path:
    """Make a new, empty folder ``runs/name/<yyyymmdd-hhmmss><suffix>``.

    Args:
        runs: folder of all runs; made if missing.
        name: name of this kind of run, such as ``mate-shapes``.
        suffix: what to put behind the time.

    Returns:
        The folder. Another run started in the same second gets a number behind its time.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S") + suffix
    (runs / name).mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = runs / name / (stamp if number == 1 else f"{stamp}-{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    note_job(folder)
    return folder


def is_first_process(num_nodes: int) -> bool:
    """Whether this process is the one that writes, before a Trainer can tell."""
    # Lightning's own launcher names the node, and the rank only to the processes that it starts.
    node = os.environ.get("NODE_RANK", "0") if num_nodes > 1 else "0"
    return getattr(rank_zero_only, "rank", 0) == 0 and int(node) == 0


def note_job(folder: Path) -> None:
    """Write into a run's folder which SLURM job it is of, if any; see :func:`requeued_from`."""
    if job := os.environ.get("SLURM_JOB_ID"):
        (folder / "slurm_job").write_text(job, encoding="utf-8")


def requeued_from(runs: Path, name: str) -> Path | None:
    """The last checkpoint of this SLURM job, where the job was requeued and has one."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    for note in sorted((runs / name).glob("2*/slurm_job"), reverse=True):
        last = note.parent / "checkpoints/last.ckpt"
        if last.is_file() and note.read_text(encoding="utf-8") == job:
            return last
    return None


def discard(folder: Path, *, upto: Path) -> None:
    """Remove a run's folder, and those above it up to ``upto`` as far as that empties them."""
    shutil.rmtree(folder, ignore_errors=True)
    latest = folder.parent / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()
    with suppress(OSError):  # not empty: other runs are in there
        for parent in folder.parents:
            parent.rmdir()
            if parent == upto:
                break


@contextmanager
def discarded_on_error(
    folder: Path | None, upto: Path | None, began: Callable[[], bool] = lambda: False
) -> Iterator[None]:
    """Remove a run's folder where an error comes before it began, see :func:`discard`.

    Args:
        folder: of the run; None: nothing is removed.
        upto: the folder of all runs; None: ``folder`` alone is removed.
        began: whether there is something to keep, asked after an error.
    """
    try:
        yield
    except BaseException:
        if folder is not None and not began():
            discard(folder, upto=upto or folder.parent)
        raise


def point_latest_to(folder: Path) -> None:
    """Let the link ``latest`` beside a run's folder lead to it."""
    link = folder.with_name(f".latest-{folder.name}")
    with suppress(OSError):  # a file system without links does without
        link.symlink_to(folder.name, target_is_directory=True)
        link.replace(folder.with_name("latest"))
