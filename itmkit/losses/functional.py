"""The losses as plain functions."""

from itmkit.losses.distillation import feature_distillation_loss, similarity_distillation_loss
from itmkit.losses.group_triplet import group_triplet_loss
from itmkit.losses.hect import hect_from_similarities, hect_loss
from itmkit.losses.triplet import triplet_loss

__all__ = [
    "feature_distillation_loss",
    "group_triplet_loss",
    "hect_from_similarities",
    "hect_loss",
    "similarity_distillation_loss",
    "triplet_loss",
]
