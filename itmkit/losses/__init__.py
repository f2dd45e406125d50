"""What a matcher learns from: losses as modules; the same as functions in ``functional``."""

from itmkit.losses import functional
from itmkit.losses.distillation import MomentumDistillationLoss
from itmkit.losses.group_triplet import GroupTripletLoss
from itmkit.losses.hect import HECTLoss
from itmkit.losses.triplet import TripletLoss

__all__ = [
    "GroupTripletLoss",
    "HECTLoss",
    "MomentumDistillationLoss",
    "TripletLoss",
    "functional",
]
