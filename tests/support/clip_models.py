"""Tiny CLIP-like models of many families, from configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCAB = 64
TOWER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
VISION = TOWER | {"image_size": 32, "patch_size": 16}
CLIP_TEXT = TOWER | {"vocab_size": VOCAB, "max_position_embeddings": 64, "eos_token_id": 2}
BERT_TEXT = TOWER | {"vocab_size": VOCAB, "max_position_embeddings": 66}
GROUPS = {
    "hidden_size": 16,
    "depths": [1, 1, 1],
    "num_hidden_layers": 3,
    "num_group_tokens": [8, 4, 0],
    "num_output_groups": [8, 4, 4],
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}
EFFICIENT_NET = {
    "width_coefficient": 0.25,
    "depth_coefficient": 0.2,
    "hidden_dim": 16,
    "image_size": 32,
    "num_hidden_layers": 8,
    "kernel_sizes": [3, 3],
    "in_channels": [8, 8],
    "out_channels": [8, 8],
    "depthwise_padding": [],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
    "initializer_range": 0.3,  # with the usual one, vectors are nearly zero
}

FAMILIES: dict[str, dict[str, Any]] = {
    "clip": {
        "projection_dim": 12,
        "text_config": CLIP_TEXT | {"projection_dim": 12},
        "vision_config": VISION | {"projection_dim": 12},
    },
    "siglip": {
        "text_config": CLIP_TEXT | {"max_position_embeddings": 12, "projection_size": 16},
        "vision_config": VISION,
    },
    "siglip2": {
        "text_config": CLIP_TEXT | {"max_position_embeddings": 12, "projection_size": 16},
        "vision_config": TOWER | {"num_patches": 4, "patch_size": 16},
    },
    "align": {
        "projection_dim": 8,
        "text_config": BERT_TEXT,
        "vision_config": EFFICIENT_NET,
    },
    "chinese_clip": {
        "projection_dim": 12,
        "text_config": BERT_TEXT,
        "vision_config": VISION | {"projection_dim": 12},
    },
    "altclip": {
        "projection_dim": 12,
        "text_config": BERT_TEXT | {"project_dim": 16, "pad_token_id": 1},
        "vision_config": VISION | {"projection_dim": 12},
    },
    "metaclip_2": {
        "projection_dim": 12,
        "text_config": CLIP_TEXT | {"projection_dim": 12},
        "vision_config": VISION | {"projection_dim": 12},
    },
    "groupvit": {
        "projection_dim": 12,
        "projection_intermediate_dim": 24,
        "text_config": CLIP_TEXT,
        "vision_config": GROUPS,
    },
    "vision-text-dual-encoder": {
        "projection_dim": 12,
        "text_config": BERT_TEXT | {"model_type": "bert"},
        "vision_config": VISION | {"model_type": "clip_vision_model"},
    },
}


def clip_config(family: str) -> dict[str, Any]:
    """The configuration of a tiny model, as ``DualEncoder(config=…)`` takes it."""
    return {"model_type": family, **FAMILIES[family]}


def save_clip(folder: Path, family: str = "siglip") -> None:
    """Save a tiny model with its tokenizer and image processor, as models on the hub are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import (
        AutoConfig,
        AutoModel,
        CLIPImageProcessorPil,
        PreTrainedTokenizerFast,
        SiglipImageProcessorPil,
    )

    words = "<pad> <unk> <end> a red blue green circle square the of and in dog cat small large"
    vocabulary = {word: i for i, word in enumerate(words.split())}
    pieces = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.post_processor = processors.TemplateProcessing("$A <end>", special_tokens=[("<end>", 2)])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<end>"}
    PreTrainedTokenizerFast(tokenizer_object=pieces, **special).save_pretrained(folder)
    config = clip_config(family)
    if family in ("siglip", "siglip2"):  # as SigLIP 2's has it: not the tokenizer's
        config["text_config"] = config["text_config"] | {"pad_token_id": 1}
        processor: Any = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    else:
        cut = {"height": 32, "width": 32}
        processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=cut)
    AutoModel.from_config(AutoConfig.for_model(**config)).save_pretrained(folder)
    processor.save_pretrained(folder)
