"""Where the index of a model is."""

from __future__ import annotations

from pathlib import Path

from itmkit.checks import InputError
from itmkit.files import user_path
from itmkit.systems.load import RUNS


def index_of(model: str) -> Path:
    """Folder of the index of a model's run: ``runs/NAME/index``.

    Args:
        model: NAME of a run, or a folder ``…/NAME/latest`` or ``…/NAME/TIME``.

    Raises:
        InputError: if it is neither, so that an index needs a folder of its own.
    """
    run = user_path(model)
    if not run.exists():
        run = RUNS / run / "latest"
    if (run / "latest").exists():
        return run / "index"
    if (run / "config.yaml").is_file():
        return run.parent / "index"
    raise InputError(
        f"model {model!r} is no run (runs/NAME/latest), and output is null; expected the NAME of a "
        "run, or a folder as output"
    )


def run_of(source: str | Path | None) -> Path | None:
    """Folder of the run that a model is from; None where it is from none.

    Args:
        source: folder of the run, or a checkpoint in it, as :attr:`itmkit.Retriever.source`.
    """
    if source is None:
        return None
    path = user_path(source)
    run = path.parent.parent if path.is_file() else path
    return run if (run / "config.yaml").is_file() else None


def find_index(name: str) -> Path:
    """Folder of an index, from its path or the name of a run; an existing path wins.

    Raises:
        FileNotFoundError: if there is neither.
    """
    path = user_path(name)
    if (path / "items.parquet").is_file() or (path / "partial").is_dir():
        return path
    for run in (path, RUNS / path):
        if (run / "index").is_dir():
            return run / "index"
        if (run.parent / "index").is_dir() and (run / "config.yaml").is_file():
            return run.parent / "index"
    raise FileNotFoundError(
        f"index is {name!r}: neither an index nor a run with one ({RUNS / path / 'index'}); "
        "itmkit index makes it"
    )
