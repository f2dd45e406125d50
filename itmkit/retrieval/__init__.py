"""What a matcher is for: encode, score, rank, report."""

from itmkit.metrics import (
    PROTOCOLS,
    BestItems,
    Judgements,
    Protocol,
    QueryRanks,
    bootstrap_recall,
)
from itmkit.retrieval.encode import Gallery, encode, evaluating
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.ensemble import Ensemble
from itmkit.retrieval.fit_second_stage import FittedStage, fit_second_stage
from itmkit.retrieval.model import RetrievalModel, ScoringModel
from itmkit.retrieval.rank import evaluate, rank_queries
from itmkit.retrieval.report import (
    EvaluatedOn,
    evaluation_rows,
    recall_table,
    write_metrics,
)
from itmkit.retrieval.score import pair_scores, score_matrix
from itmkit.retrieval.search import best_captions, best_images

__all__ = [
    "PROTOCOLS",
    "BestItems",
    "Encoding",
    "Ensemble",
    "EvaluatedOn",
    "FittedStage",
    "Gallery",
    "Judgements",
    "Protocol",
    "QueryRanks",
    "RetrievalModel",
    "ScoringModel",
    "best_captions",
    "best_images",
    "bootstrap_recall",
    "encode",
    "evaluate",
    "evaluating",
    "evaluation_rows",
    "fit_second_stage",
    "pair_scores",
    "rank_queries",
    "recall_table",
    "score_matrix",
    "write_metrics",
]
