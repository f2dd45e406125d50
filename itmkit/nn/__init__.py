"""What a matcher is made of: encoders, pooling, attention, refinement and fusion."""

from __future__ import annotations

from itmkit.nn.attention_filtration import AttentionFiltration
from itmkit.nn.bag_of_words import BagOfWords
from itmkit.nn.bigru import BiGRU
from itmkit.nn.clip_model import ClipModel
from itmkit.nn.contract import Tokens
from itmkit.nn.cross_attention import CrossAttentionSimilarity
from itmkit.nn.external_attention import ExternalSpatialAttention
from itmkit.nn.feature_discriminability import FeatureDiscriminability
from itmkit.nn.fusion import FusionEncoder
from itmkit.nn.graph_reasoning import GraphReasoning
from itmkit.nn.guided_pooling import GuidedPooling
from itmkit.nn.levels import SharedLevels
from itmkit.nn.masked_batch_norm import MaskedBatchNorm
from itmkit.nn.matching_head import MatchingHead
from itmkit.nn.refined_similarity import RefinedSimilarity
from itmkit.nn.region_projection import RegionProjection
from itmkit.nn.scan_attention import ScanAttention
from itmkit.nn.stored_tokens import StoredTokens
from itmkit.nn.text_refinement import TextRefinement
from itmkit.nn.timm_grid import TimmGrid
from itmkit.nn.timm_levels import TimmLevels
from itmkit.nn.transformer_image import TransformerImage
from itmkit.nn.transformer_levels import TransformerLevels
from itmkit.nn.transformer_text import TransformerText
from itmkit.nn.two_part_gru import TwoPartGRU
from itmkit.nn.visual_refinement import VisualRefinement
from itmkit.nn.word_embedding import WordEmbedding
from itmkit.vectors import l2_normalize

__all__ = [
    "AttentionFiltration",
    "BagOfWords",
    "BiGRU",
    "ClipModel",
    "CrossAttentionSimilarity",
    "ExternalSpatialAttention",
    "FeatureDiscriminability",
    "FusionEncoder",
    "GraphReasoning",
    "GuidedPooling",
    "MaskedBatchNorm",
    "MatchingHead",
    "RefinedSimilarity",
    "RegionProjection",
    "ScanAttention",
    "SharedLevels",
    "StoredTokens",
    "TextRefinement",
    "TimmGrid",
    "TimmLevels",
    "Tokens",
    "TransformerImage",
    "TransformerLevels",
    "TransformerText",
    "TwoPartGRU",
    "VisualRefinement",
    "WordEmbedding",
    "l2_normalize",
]
