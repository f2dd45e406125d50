"""``itmkit compare``: evaluations side by side, and how sure their difference is."""

from __future__ import annotations

from collections.abc import Sequence

from itmkit.cli.parser import OneLineParser


def compare(words: Sequence[str]) -> None:
    """Run the command with the words after ``itmkit compare``."""
    parser = OneLineParser(
        prog="itmkit compare",
        allow_abbrev=False,
        description="Compare evaluations of the same queries, each with the first: recalls, "
        "intervals by paired bootstrap, p-values by a randomisation test, queries that rank better "
        "or worse, options that differ.",
    )
    add = parser.add_argument
    add(
        "runs",
        nargs="+",
        type=str,
        metavar="RUN",
        help="Folder of itmkit test or validate; or that of itmkit fit, or NAME for "
        "runs/NAME/latest, of which the latest evaluation is taken.",
    )
    add("--samples", type=int, default=10_000, help="Draws of the test; a tenth of the bootstrap.")
    add("--seed", type=int, default=0, help="Seed of the draws.")
    add("--queries", type=int, default=10, help="Queries listed whose ranks changed most.")
    options = parser.parse_args(list(words))
    from itmkit.evaluation import compare_runs

    names = list(options.runs)
    print(compare_runs(names, samples=options.samples, seed=options.seed, queries=options.queries))
