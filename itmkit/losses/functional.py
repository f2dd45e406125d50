"""The losses as plain functions."""

from itmkit.losses.adaptive_margin import adaptive_margin
from itmkit.losses.distillation import feature_distillation_loss, similarity_distillation_loss
from itmkit.losses.group_triplet import group_triplet_loss
from itmkit.losses.hect import hect_from_similarities, hect_loss
from itmkit.losses.hinge_cross_entropy import hinge_cross_entropy_loss
from itmkit.losses.info_nce import info_nce_loss
from itmkit.losses.row_cross_entropy import row_cross_entropy_loss
from itmkit.losses.siglip import siglip_loss
from itmkit.losses.triplet import triplet_loss

__all__ = [
    "adaptive_margin",
    "feature_distillation_loss",
    "group_triplet_loss",
    "hect_from_similarities",
    "hect_loss",
    "hinge_cross_entropy_loss",
    "info_nce_loss",
    "row_cross_entropy_loss",
    "siglip_loss",
    "similarity_distillation_loss",
    "triplet_loss",
]
