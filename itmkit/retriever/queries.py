"""Sentences that the recall of a faiss index is measured with."""

from __future__ import annotations

from pathlib import Path

from itmkit.checks import InputError
from itmkit.systems import load_run


def validation_captions(source: str | None) -> list[str]:
    """The captions that a run validates on.

    Args:
        source: folder of the run, or a checkpoint in it, as :attr:`itmkit.Retriever.source`.

    Raises:
        FileNotFoundError: if its data are no longer there.
        InputError: if it is no run, or has no validation split.
    """
    path = Path(source or "")
    run = path.parent.parent if path.is_file() else path
    if source is None or not (run / "config.yaml").is_file():
        raise InputError(
            f"queries is None, and the model ({source or 'built in code'}) is no run with captions "
            "to validate on; expected sentences (--queries FILE, one a line)"
        )
    return list(load_run(run)[1].split("val").captions)
