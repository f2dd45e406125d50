"""How a matcher is judged: recall in both directions."""

from itmkit.metrics.bootstrap import bootstrap_recall
from itmkit.metrics.functional import cross_modal_recall, five_fold_recall
from itmkit.metrics.judgements import Judgements
from itmkit.metrics.list_metrics import ListMetrics
from itmkit.metrics.protocol import PROTOCOLS, Protocol
from itmkit.metrics.query_ranks import BestItems, QueryRanks
from itmkit.metrics.recall import CrossModalRecall

__all__ = [
    "PROTOCOLS",
    "BestItems",
    "CrossModalRecall",
    "Judgements",
    "ListMetrics",
    "Protocol",
    "QueryRanks",
    "bootstrap_recall",
    "cross_modal_recall",
    "five_fold_recall",
]
