"""``itmkit test | validate --ensemble RUN RUN …``: several runs measured together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from itmkit.checks import InputError
from itmkit.cli.parser import call

ARGUMENTS: dict[str, Any] = {
    "--ensemble": {"nargs": "+", "metavar": "RUN", "required": True},
    "--protocol_files": {"nargs": "+"},
}
STAGES: dict[str, Literal["val", "test"]] = {"validate": "val", "test": "test"}


def run_ensemble(command: str, words: Sequence[str]) -> None:
    """Run a command with its words, of which one is ``--ensemble``."""
    if command not in STAGES:
        raise InputError(
            f"--ensemble is an option of itmkit {' and '.join(STAGES)}; itmkit {command} has none"
        )
    words = ["--help"] if {"-h", "--help"} & set(words) else words  # before runs are missed
    options = call(ensemble_options, words, f"{command} --ensemble", ARGUMENTS)

    from itmkit.files import check_different
    from itmkit.metrics.protocol import check_protocol_files, find_protocol
    from itmkit.modes import usable_device
    from itmkit.runs import evaluate_ensemble
    from itmkit.systems import find_run

    check_protocol_files(find_protocol(options["protocol"]), options["protocol_files"])
    ensemble = options.pop("ensemble")
    runs = [find_run(run) for run in ensemble]
    check_different("ensemble", ensemble, runs)
    options["device"] = usable_device(options["device"])
    evaluate_ensemble(runs, stage=STAGES[command], **options)


def ensemble_options(
    *,
    ensemble: list[str],
    name: str = "ensemble",
    protocol: int | str | None = None,
    protocol_files: list[str] | None = None,
    keep: int = 10,
    trec: bool = False,
    device: str | None = None,
) -> dict[str, Any]:
    """Measure runs of one system or several together, by the mean of standardised scores.

    Args:
        ensemble: Folder or NAME of a run; several.
        name: Folder inside runs that gets the results.
        protocol: f30k-1k, coco-5k, coco-1k, cxc, eccv, or folds.
        protocol_files: Judgements of cxc and eccv.
        keep: Items of each query in queries.parquet; 0: no file.
        trec: Whether to write files for ir-measures.
        device: Where null, a GPU if there is one.
    """
    return locals()
