"""``itmkit report``: one HTML page of what a run has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from itmkit.cli.errors import one_line
from itmkit.cli.parser import OneLineParser

if TYPE_CHECKING:
    import torch


def report(words: Sequence[str]) -> None:
    """Write a page of a run that opens without a network; needs itmkit[report].

    It shows recall with intervals, training curves, ranks, scores, right and wrong results, maps of
    what words look at, and how to reproduce it.
    """
    parser = OneLineParser(prog="itmkit report", allow_abbrev=False, description=report.__doc__)
    add = parser.add_argument
    add("run", type=str, help="NAME of a run, for runs/NAME/latest, or its folder.")
    add("other", nargs="?", type=str, help="A second run on the same captions, to compare with.")
    add("--output", type=Path | None, help="Where null, report.html in the folder of the run.")
    add("--split", type=Literal["val", "test"], default="val", help="Of the run's data.")
    add(
        "--protocol",
        type=int | str | None,
        help="f30k-1k, coco-5k, coco-1k or a number of folds; where null, the whole split is "
        "searched together.",
    )
    add("--photos", type=str | None, help="Where the photos are, for a run on stored features.")
    add("--device", type=str | None, help="Where null, a GPU if there is one.")
    options = parser.parse_args(list(words))

    from itmkit.modes import usable_device
    from itmkit.report.run_report import write_report
    from itmkit.retriever.names import find_run

    path = write_report(
        find_run(options.run),
        options.output,
        other=None if options.other is None else find_run(options.other),
        split=options.split,
        protocol=options.protocol,
        photos=options.photos,
        device=usable_device(options.device),
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
