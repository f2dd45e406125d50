"""A saved text model of the transformers library, tiny and of random weights."""

from __future__ import annotations

from pathlib import Path

import torch

from itmkit.data import ShapesDataset

WIDTH = 8


def save_text_model(folder: Path, *, seed: int = 0, layers: int = 1, longest: int = 64) -> str:
    """Save a BERT of the words of the shapes, with its tokenizer; the name of the folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    words |= dict.fromkeys(ShapesDataset.vocabulary.words[5:])
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=WIDTH,
        max_position_embeddings=longest,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    return str(folder)
