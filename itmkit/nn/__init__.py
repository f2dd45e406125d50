"""What a matcher is made of: encoders, pooling, attention, refinement and fusion."""

from __future__ import annotations

from itmkit.nn.attention.cross_attention import CrossAttentionSimilarity
from itmkit.nn.attention.scan_attention import ScanAttention
from itmkit.nn.contract import Tokens
from itmkit.nn.encoders.bag_of_words import BagOfWords
from itmkit.nn.encoders.bigru import BiGRU
from itmkit.nn.encoders.clip_model import ClipModel
from itmkit.nn.encoders.levels import SharedLevels
from itmkit.nn.encoders.region_projection import RegionProjection
from itmkit.nn.encoders.stored_tokens import StoredTokens
from itmkit.nn.encoders.timm_grid import TimmGrid
from itmkit.nn.encoders.timm_levels import TimmLevels
from itmkit.nn.encoders.transformer_image import TransformerImage
from itmkit.nn.encoders.transformer_levels import TransformerLevels
from itmkit.nn.encoders.transformer_text import TransformerText
from itmkit.nn.encoders.two_part_gru import TwoPartGRU
from itmkit.nn.encoders.word_embedding import WordEmbedding
from itmkit.nn.fusion.cross_attention_fusion import CrossAttentionFusion
from itmkit.nn.fusion.fusion_encoder import FusionEncoder
from itmkit.nn.fusion.matching_head import MatchingHead
from itmkit.nn.layers.masked_batch_norm import MaskedBatchNorm
from itmkit.nn.layers.synchronised_batch_norm import synchronise_batch_norm
from itmkit.nn.pooling.attention_filtration import AttentionFiltration
from itmkit.nn.pooling.external_attention import ExternalSpatialAttention
from itmkit.nn.pooling.feature_discriminability import FeatureDiscriminability
from itmkit.nn.pooling.global_branch import GlobalBranch
from itmkit.nn.pooling.guided_pooling import GuidedPooling
from itmkit.nn.pooling.hubness_correction import HubnessCorrection
from itmkit.nn.pooling.mean_path import MeanPath
from itmkit.nn.refinement.graph_reasoning import GraphReasoning
from itmkit.nn.refinement.refined_similarity import RefinedSimilarity
from itmkit.nn.refinement.text_refinement import TextRefinement
from itmkit.nn.refinement.visual_refinement import VisualRefinement
from itmkit.nn.teacher import Teacher
from itmkit.vectors import l2_normalize

__all__ = [
    "AttentionFiltration",
    "BagOfWords",
    "BiGRU",
    "ClipModel",
    "CrossAttentionFusion",
    "CrossAttentionSimilarity",
    "ExternalSpatialAttention",
    "FeatureDiscriminability",
    "FusionEncoder",
    "GlobalBranch",
    "GraphReasoning",
    "GuidedPooling",
    "HubnessCorrection",
    "MaskedBatchNorm",
    "MatchingHead",
    "MeanPath",
    "RefinedSimilarity",
    "RegionProjection",
    "ScanAttention",
    "SharedLevels",
    "StoredTokens",
    "Teacher",
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
    "synchronise_batch_norm",
]
