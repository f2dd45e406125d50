"""What an evaluation leaves: ranks and results of every query, and comparisons of runs."""

from itmkit.evaluation.compare import Comparison, RunComparison, compare_ranks, compare_runs
from itmkit.evaluation.judgement_files import read_judgements
from itmkit.evaluation.probes import ProbeResult, probe_scenes
from itmkit.evaluation.query_file import QueryFile, read_queries, write_queries
from itmkit.evaluation.trec import write_trec

__all__ = [
    "Comparison",
    "ProbeResult",
    "QueryFile",
    "RunComparison",
    "compare_ranks",
    "compare_runs",
    "probe_scenes",
    "read_judgements",
    "read_queries",
    "write_queries",
    "write_trec",
]
