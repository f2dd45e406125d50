"""``itmkit test --ensemble RUN RUN …``: several runs measured together."""

from __future__ import annotations

from collections.abc import Sequence

from itmkit.cli.parser import OneLineParser


def run_ensemble(words: Sequence[str]) -> None:
    """Run the command with the words after ``itmkit test``."""
    parser = OneLineParser(
        prog="itmkit test --ensemble",
        allow_abbrev=False,
        description="Measure runs together, of one system or several, by the mean of their "
        "standardised scores.",
    )
    add = parser.add_argument
    add("--ensemble", nargs="+", type=str, metavar="RUN", help="Folder or NAME of a run; several.")
    add("--name", type=str, default="ensemble", help="Folder inside runs that gets the results.")
    add("--protocol", type=int | str | None, help="f30k-1k, coco-5k, coco-1k, cxc, eccv, or folds.")
    add("--protocol_files", nargs="+", type=str, help="Judgements of cxc and eccv.")
    add("--keep", type=int, default=10, help="Items of each query in queries.parquet; 0: no file.")
    add("--trec", type=bool, default=False, help="Whether to write files for ir-measures.")
    add("--device", type=str | None, help="Where null, a GPU if there is one.")
    options = parser.parse_args(list(words))
    from itmkit.files import check_different
    from itmkit.metrics.protocol import check_protocol_files, find_protocol
    from itmkit.modes import usable_device
    from itmkit.retriever.names import find_run
    from itmkit.runs.ensemble import evaluate_ensemble

    check_protocol_files(find_protocol(options.protocol), options.protocol_files)
    runs = [find_run(run) for run in options.ensemble]
    check_different("ensemble", options.ensemble, runs)
    evaluate_ensemble(
        runs,
        name=options.name,
        protocol=options.protocol,
        protocol_files=options.protocol_files,
        keep=options.keep,
        trec=options.trec,
        device=usable_device(options.device),
    )
