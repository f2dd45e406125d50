"""Recall as a table to read and as a file to keep."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from itmkit.checks import InputError, type_of
from itmkit.files import user_path, write_text


@dataclass(frozen=True)
class EvaluatedOn:
    """What recall was measured on, and of which weights: what it cannot be compared without.

    Args:
        split: name of the split.
        images: how many images there were to find.
        captions: how many captions.
        checkpoint: file of the weights; None if they were in memory.
        step: optimizer steps that they were trained.
        batches: how many batches were evaluated of how many the split has, where not all.
        protocol: name of the protocol; None where the whole split was searched.
        intervals: lower and upper bound of each value, by bootstrap with 95 % confidence, where
            they were computed; see :func:`itmkit.metrics.bootstrap_recall`.
        queries: how many images and captions are queries, where judgements say which.
        probes: of each kind of probes, accuracy, share of ties and number of pairs, where there are
            some; see :class:`itmkit.evaluation.ProbeResult`.

    Example:
        >>> print(EvaluatedOn("val", 1000, 5000, "checkpoints/best.ckpt", 600))
        val: 1000 images × 5000 captions, checkpoints/best.ckpt at step 600
        >>> print(EvaluatedOn("test", 64, 320, None, 0, batches=(2, 40)))
        test: 64 images × 320 captions, no checkpoint, step 0; only 2 of 40 batches
        >>> print(EvaluatedOn("test", 5000, 25000, "best.ckpt", 600, protocol="coco-1k"))
        test, protocol coco-1k: 5000 images × 25000 captions, best.ckpt at step 600
    """

    split: str
    images: int
    captions: int
    checkpoint: str | None
    step: int
    batches: tuple[int, int] | None = None
    protocol: str | None = None
    intervals: Mapping[str, tuple[float, float]] | None = None
    queries: tuple[int, int] | None = None
    probes: Mapping[str, Mapping[str, float | None]] | None = None

    @property
    def gallery(self) -> str:
        """The split and what was searched in it."""
        protocol = f", protocol {self.protocol}" if self.protocol else ""
        queries = ""
        if self.queries is not None:
            queries = f" ({self.queries[0]} and {self.queries[1]} of them queries)"
        return f"{self.split}{protocol}: {self.images} images × {self.captions} captions{queries}"

    def __str__(self) -> str:
        weights = f"{self.checkpoint} at" if self.checkpoint else "no checkpoint,"
        part = f"; only {self.batches[0]} of {self.batches[1]} batches" if self.batches else ""
        return f"{self.gallery}, {weights} step {self.step}{part}"


_COLUMNS = (("r1", "R@1"), ("r5", "R@5"), ("r10", "R@10"), ("medr", "medR"))
_LIST_COLUMNS = (("ndcg10", "nDCG"), ("rprecision", "RP"), ("map_at_r", "mAP@R"))
_SIDES = (("i2t", "image to text"), ("t2i", "text to image"))


def recall_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out recall as plain text, one row per model or stage, with list metrics if any has them.

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
        raise InputError("rows is empty; expected at least one row")
    width = max(len(name) for name in rows)
    has_lists = any("i2t_ndcg10" in recall for recall in rows.values())
    columns = [*_COLUMNS, *(_LIST_COLUMNS if has_lists else ())]
    sides = [" " * width, *(f"{title:^{6 * len(columns)}}" for _, title in _SIDES)]
    heads = [" " * width]
    heads += ["".join(f"{head:>6}" for _, head in columns)] * len(_SIDES)
    lines = []
    for name, recall in rows.items():
        groups = [
            "".join(_cell(recall.get(f"{side}_{key}"), 6) for key, _ in columns)
            for side, _ in _SIDES
        ]
        lines.append("  ".join([f"{name:<{width}}", *groups]) + _cell(recall.get("rsum"), 8))
    header = "  ".join(heads) + f"{'rSum':>8}"
    return "\n".join(["  ".join(sides).rstrip(), header, "-" * len(header), *lines])


def evaluation_rows(
    name: str, recall: Mapping[str, float], about: EvaluatedOn
) -> dict[str, dict[str, float]]:
    """The rows of :func:`recall_table` for an evaluation: recall, that of each fold, intervals.

    Args:
        name: of the first row.
        recall: as of :func:`itmkit.metrics.query_ranks.recall_of_folds`.
        about: what it was measured on.

    Example:
        >>> about = EvaluatedOn("test", 4, 4, None, 0, intervals={"rsum": (210.0, 360.0)})
        >>> recall = {"rsum": 300.0, "fold_1/rsum": 200.0, "fold_2/rsum": 400.0}
        >>> for row in evaluation_rows("trained", recall, about).items():
        ...     print(row)
        ('trained', {'rsum': 300.0})
        ('  fold 1', {'rsum': 200.0})
        ('  fold 2', {'rsum': 400.0})
        ('  95 % from', {'rsum': 210.0})
        ('  95 % to', {'rsum': 360.0})
    """
    rows: dict[str, dict[str, float]] = {name: {}}
    for key, value in recall.items():
        fold, slash, own = key.rpartition("/")
        row = f"  {fold.replace('_', ' ')}" if slash else name
        rows.setdefault(row, {})[own] = value
    if about.intervals is not None:
        for place, row in enumerate(("  95 % from", "  95 % to")):
            rows[row] = {key: bounds[place] for key, bounds in about.intervals.items()}
    return rows


def _cell(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{float(value):>{width}.1f}"


def write_metrics(
    path: str | os.PathLike[str],
    metrics: Mapping[str, float | Tensor],
    stage: str,
    about: EvaluatedOn | None = None,
) -> None:
    """Write metrics to a flat JSON file in place of those of the stage, keeping other stages.

    The file is replaced in one step: a reader sees the old one or the new one.

    Args:
        path: the file; its folder is made if it is not there.
        metrics: name → number, or tensor of one element. Kept to four decimals.
        stage: goes in front of every name, as in ``test/i2t_r1``.
        about: what they were measured on; under the key ``about``, by stage.

    Raises:
        InputError: an empty stage, a value that is not finite, or a file there that is not a JSON
            object.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_metrics(f"{folder}/metrics.json", {"rsum": 523.8}, "val")
        ...     write_metrics(f"{folder}/metrics.json", {"rsum": 520.1}, "test")
        ...     json.loads(Path(f"{folder}/metrics.json").read_text())
        {'val/rsum': 523.8, 'test/rsum': 520.1}
    """
    path = user_path(path)
    if not stage:
        raise InputError(f"stage is {stage!r}; expected a name")
    content: dict[str, Any] = {}
    if path.exists():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(content, dict):
            raise InputError(f"{path} holds {type_of(content)}; expected a JSON object")
    described = content.pop("about", {})
    described.pop(stage, None)
    content = {key: old for key, old in content.items() if not key.startswith(f"{stage}/")}
    content.update({f"{stage}/{name}": round(float(v), 4) for name, v in metrics.items()})
    if about is not None:
        described[stage] = asdict(about)
        if about.intervals is not None:
            described[stage]["intervals"] = {
                name: [round(bound, 4) for bound in bounds]
                for name, bounds in about.intervals.items()
            }
    if described:
        content["about"] = described
    try:
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise InputError(
            f"metrics of {stage} is {dict(metrics)}; expected finite numbers"
        ) from error
    write_text(path, text)
