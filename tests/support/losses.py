"""The losses that the laws are tested on: a further one is a line here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from itmkit.losses import (
    AdaptiveMarginTripletLoss,
    GroupTripletLoss,
    HECTLoss,
    HingeCrossEntropyLoss,
    InfoNCELoss,
    MomentumDistillationLoss,
    RowCrossEntropyLoss,
    SigLIPLoss,
    TripletLoss,
    VectorLoss,
)

#: Of ``(scores, positives)``.
SCORE_LOSSES: dict[str, Callable[[], nn.Module]] = {
    "triplet": TripletLoss,
    "triplet_all": partial(TripletLoss, negatives="all"),
    "triplet_sum": partial(TripletLoss, reduction="sum"),
    "adaptive_margin": partial(AdaptiveMarginTripletLoss, min_rows=2),
    "group": partial(GroupTripletLoss, group_size=1),
    "hinge_cross_entropy": HingeCrossEntropyLoss,
    "info_nce": partial(InfoNCELoss, 0.5),
    "info_nce_learnt": partial(InfoNCELoss, 0.5, learnt=True),
    "row_cross_entropy": RowCrossEntropyLoss,
    "siglip": SigLIPLoss,
    "siglip_fixed": partial(SigLIPLoss, learnt=False),
}
#: Of ``(image, text, image_ids)``, or with a teacher.
VECTOR_LOSSES: dict[str, Callable[[], nn.Module]] = {
    **{name: lambda make=make: VectorLoss(make()) for name, make in SCORE_LOSSES.items()},
    "hect": HECTLoss,
    "hect_many": partial(HECTLoss, num_hard_negatives=9),
    "distillation": partial(MomentumDistillationLoss, feature_weight=1.0),
}
LOSSES = SCORE_LOSSES | {f"vectors_{name}": make for name, make in VECTOR_LOSSES.items()}
