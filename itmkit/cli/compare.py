"""``itmkit compare``: evaluations side by side, and how sure their difference is."""

from __future__ import annotations

ARGUMENTS = {"runs": {"nargs": "+", "metavar": "RUN"}}


def compare(runs: list[str], *, samples: int = 10_000, seed: int = 0, queries: int = 10) -> None:
    """Compare evaluations of the same queries, each with the first.

    It shows recalls, intervals by paired bootstrap, p-values by a randomisation test, queries that
    rank better or worse, and options that differ.

    Args:
        runs: Folder of itmkit test or validate; or that of itmkit fit, or NAME for
            runs/NAME/latest, of which the latest evaluation is taken.
        samples: Draws of the randomisation test; the bootstrap makes a tenth, at least 100.
        seed: Seed of the draws.
        queries: How many queries are listed, those whose ranks changed most.
    """
    from itmkit.evaluation import compare_runs

    print(compare_runs(runs, samples=samples, seed=seed, queries=queries))
