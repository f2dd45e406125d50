"""What a matcher is for: encode, score, rank, report."""

from itmkit.retrieval.encode import Gallery, encode, evaluating
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.protocol import RetrievalModel
from itmkit.retrieval.rank import evaluate
from itmkit.retrieval.report import EvaluatedOn, recall_table, write_metrics
from itmkit.retrieval.score import pair_scores, score_matrix
from itmkit.retrieval.search import best_captions, best_images

__all__ = [
    "Encoding",
    "EvaluatedOn",
    "Gallery",
    "RetrievalModel",
    "best_captions",
    "best_images",
    "encode",
    "evaluate",
    "evaluating",
    "pair_scores",
    "recall_table",
    "score_matrix",
    "write_metrics",
]
