"""``itmkit report``: one HTML page of what a run has learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from itmkit.cli.parser import OneLineParser


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
        type=str | None,
        help="f30k-1k, coco-5k or coco-1k; where null, the whole split is searched together.",
    )
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
        device=usable_device(options.device),
    )
    print(f"report: {path}")
