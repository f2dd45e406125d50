"""Recall as a table to read and as a file to keep."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from torch import Tensor

from itmkit.checks import InputError
from itmkit.files import user_path, write_text

_COLUMNS = (("r1", "R@1"), ("r5", "R@5"), ("r10", "R@10"), ("medr", "medR"))
_SIDES = (("i2t", "image to text"), ("t2i", "text to image"))


def recall_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out recall as plain text, one row a model or stage.

    Args:
        rows: name of the row → the dictionary of ``cross_modal_recall``; per cent and ranks. A key
            that is not there is shown as ``-``.

    Returns:
        The table, without a newline at its end.

    Raises:
        InputError: no rows.

    Example:
        >>> recall = {"i2t_r1": 61.25, "i2t_medr": 1.0, "rsum": 523.8}
        >>> print(recall_table({"MATE": recall}))
                   image to text             text to image
                 R@1   R@5  R@10  medR     R@1   R@5  R@10  medR    rSum
        ----------------------------------------------------------------
        MATE    61.2     -     -   1.0       -     -     -     -   523.8
    """
    if not rows:
        raise InputError("rows must hold at least one row, got none")
    width = max(len(name) for name in rows)
    sides = [" " * width, *(f"{title:^24}" for _, title in _SIDES)]
    heads = [" " * width]
    heads += ["".join(f"{head:>6}" for _, head in _COLUMNS)] * len(_SIDES)
    lines = []
    for name, recall in rows.items():
        groups = [
            "".join(_cell(recall.get(f"{side}_{key}"), 6) for key, _ in _COLUMNS)
            for side, _ in _SIDES
        ]
        lines.append("  ".join([f"{name:<{width}}", *groups]) + _cell(recall.get("rsum"), 8))
    header = "  ".join(heads) + f"{'rSum':>8}"
    return "\n".join(["  ".join(sides).rstrip(), header, "-" * len(header), *lines])


def _cell(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{float(value):>{width}.1f}"


def write_metrics(
    path: str | os.PathLike[str], metrics: Mapping[str, float | Tensor], stage: str
) -> None:
    """Write metrics to a flat JSON file, keeping what other stages wrote there.

    The file is replaced in one step: a reader sees the old one or the new one.

    Args:
        path: the file; its folder is made if it is not there.
        metrics: name → number, or tensor of one element. Kept to four decimals.
        stage: goes in front of every name, as in ``test/i2t_r1``.

    Raises:
        InputError: an empty stage, a value that is not finite, or a file there that is not a JSON
            object.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_metrics(f"{folder}/metrics.json", {"rsum": 523.8}, "val")
        ...     write_metrics(f"{folder}/metrics.json", {"rsum": 520.1}, "test")
        ...     json.loads(Path(f"{folder}/metrics.json").read_text())
        {'val/rsum': 523.8, 'test/rsum': 520.1}
    """
    path = user_path(path)
    if not stage:
        raise InputError(f"stage must be a name, got {stage!r}")
    content: dict[str, float] = {}
    if path.exists():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise InputError(f"{path} must hold a JSON object, got {type(content).__name__}")
    content.update({f"{stage}/{name}": round(float(v), 4) for name, v in metrics.items()})
    try:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise InputError(f"metrics of {stage} must be finite, got {dict(metrics)}") from error
    write_text(path, text)
