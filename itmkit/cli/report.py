"""``itmkit report``: one HTML page of what a run has learnt."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from itmkit.cli.errors import one_line

if TYPE_CHECKING:
    import torch


ARGUMENTS: dict[str, Any] = {"run": {}, "other": {"nargs": "?"}}


def report(
    run: str,
    other: str | None = None,
    *,
    output: Path | None = None,
    split: Literal["val", "test"] = "val",
    protocol: int | str | None = None,
    photos: str | None = None,
    device: str | None = None,
) -> None:
    """Write a page of a run that opens without a network; needs itmkit[report].

    It shows recall with intervals, training curves, ranks, scores, right and wrong results, maps of
    what words look at, and how to reproduce it.

    Args:
        run: NAME of a run, for runs/NAME/latest, or its folder.
        other: A second run on the same captions, to compare with.
        output: Where null, report.html in the folder of the run.
        split: Split of the run's data that is shown.
        protocol: f30k-1k, coco-5k, coco-1k or a number of folds; where null, the whole split is
            searched together.
        photos: Where the photos are, for a run on stored features.
        device: Where null, a GPU if there is one.
    """
    from itmkit.modes import usable_device
    from itmkit.report.run_report import write_report
    from itmkit.systems import find_run

    path = write_report(
        find_run(run),
        output,
        other=None if other is None else find_run(other),
        split=split,
        protocol=protocol,
        photos=photos,
        device=usable_device(device),
    )
    print(f"report: {path}")


def report_of_training(run: Path, device: torch.device) -> None:
    """Write the page of a run that has just ended; where that fails, one line says why.

    The run is whole without it, so no error ends the command.
    """
    from itmkit.report.run_report import write_report

    try:
        print(f"report: {write_report(run, device=device)}")
    except Exception as error:
        reason = one_line(error) or f"{type(error).__name__}, which itmkit report {run} shows"
        print(f"no report: {reason}")
