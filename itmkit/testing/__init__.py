"""The laws of itmkit as checks for a system, loss or encoder of your own, from any test.

Each check raises an ``AssertionError`` that says in one sentence which law is broken, and where.

Example:
    >>> from itmkit.losses import TripletLoss
    >>> check_loss(TripletLoss)
"""

from itmkit.testing.audit import Audit, Check, audit
from itmkit.testing.encoder import check_encoder
from itmkit.testing.loss import check_loss
from itmkit.testing.matcher import check_matcher, check_pairs_alone
from itmkit.testing.processes import check_processes

__all__ = [
    "Audit",
    "Check",
    "audit",
    "check_encoder",
    "check_loss",
    "check_matcher",
    "check_pairs_alone",
    "check_processes",
]
