"""What an evaluation leaves: ranks and results of every query, and comparisons of runs."""

from itmkit.evaluation.query_file import QueryFile, read_queries, write_queries
from itmkit.evaluation.trec import write_trec

__all__ = ["QueryFile", "read_queries", "write_queries", "write_trec"]
