"""What a matcher learns from: losses as modules; the same as functions in ``functional``."""

from itmkit.losses import functional
from itmkit.losses.adaptive_margin import AdaptiveMarginTripletLoss
from itmkit.losses.distillation import MomentumDistillationLoss
from itmkit.losses.distributed import Distributed
from itmkit.losses.group_triplet import GroupTripletLoss
from itmkit.losses.hect import HECTLoss
from itmkit.losses.hinge_cross_entropy import HingeCrossEntropyLoss
from itmkit.losses.info_nce import InfoNCELoss
from itmkit.losses.row_cross_entropy import RowCrossEntropyLoss
from itmkit.losses.scores import ScoreLoss
from itmkit.losses.siglip import SigLIPLoss
from itmkit.losses.triplet import TripletLoss
from itmkit.losses.vector import VectorLoss

__all__ = [
    "AdaptiveMarginTripletLoss",
    "Distributed",
    "GroupTripletLoss",
    "HECTLoss",
    "HingeCrossEntropyLoss",
    "InfoNCELoss",
    "MomentumDistillationLoss",
    "RowCrossEntropyLoss",
    "ScoreLoss",
    "SigLIPLoss",
    "TripletLoss",
    "VectorLoss",
    "functional",
]
