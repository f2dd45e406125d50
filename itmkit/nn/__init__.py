"""What a matcher is made of: encoders, pooling and fusion."""

from __future__ import annotations

from itmkit.nn.bag_of_words import BagOfWords
from itmkit.nn.bigru import BiGRU
from itmkit.nn.external_attention import ExternalSpatialAttention
from itmkit.nn.functional import l2_normalize
from itmkit.nn.fusion import FusionEncoder
from itmkit.nn.masked_batch_norm import MaskedBatchNorm
from itmkit.nn.matching_head import MatchingHead
from itmkit.nn.region_projection import RegionProjection
from itmkit.nn.timm_grid import TimmGrid
from itmkit.nn.transformer_text import TransformerText

__all__ = [
    "BagOfWords",
    "BiGRU",
    "ExternalSpatialAttention",
    "FusionEncoder",
    "MaskedBatchNorm",
    "MatchingHead",
    "RegionProjection",
    "TimmGrid",
    "TransformerText",
    "l2_normalize",
]
