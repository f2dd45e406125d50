"""How a matcher is judged: recall in both directions."""

from itmkit.metrics.functional import cross_modal_recall, five_fold_recall
from itmkit.metrics.recall import CrossModalRecall

__all__ = ["CrossModalRecall", "cross_modal_recall", "five_fold_recall"]
