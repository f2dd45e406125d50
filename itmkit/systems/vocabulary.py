"""The text encoder of a system and the tokenizer of its data: the same ids, captions that fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from itmkit.checks import InputError
from itmkit.nn import WordEmbedding


def complete_embeddings(model: nn.Module, data: Any) -> None:
    """Give word embeddings of an unknown number of words that of the data module."""
    for module in model.modules():
        if isinstance(module, WordEmbedding) and not module.vocab_size:
            size = getattr(data, "vocabulary_size", None)
            if size is not None:
                module.complete(size)


def check_vocabulary(model: nn.Module, data: Any) -> None:
    """Compare the ids of the data's tokenizer with those that the text encoders take.

    Raises:
        InputError: if the tokenizer has more, or the data has no ids but features for them.
    """
    encoders = list(_text_encoders(model))
    if encoders and getattr(data, "text_features", None) is not None:
        name, encoder = encoders[0]
        raise InputError(
            f"{name} is a {type(encoder).__name__}, which takes token ids, but text_features of "
            "the data is given; expected one that takes features, such as itmkit.nn.StoredTokens"
        )
    size = getattr(data, "vocabulary_size", None) if encoders else None
    if size is None:
        return
    tokenizer: Any = getattr(data, "tokenizer", None)
    kind = type(tokenizer).__name__ if tokenizer is not None else "data"
    for name, encoder in encoders:
        mismatch = f"{name}.vocab_size is {encoder.vocab_size}, but the {kind} has {size} ids"
        if size > encoder.vocab_size:
            raise InputError(f"{mismatch}; expected {size}, or another tokenizer")
        source = getattr(encoder, "name_or_path", None)
        made_for_it = source is not None and source == getattr(tokenizer, "name_or_path", None)
        if size < encoder.vocab_size and not made_for_it:
            rank_zero_warn(
                f"{mismatch}: they may not be made for each other, and {encoder.vocab_size - size} "
                "rows of the embedding are never used"
            )


def limit_captions(model: nn.Module, data: Any) -> None:
    """Let the data cut captions to what the text encoders take (``max_length``)."""
    most = most_tokens(model)
    if most is not None and hasattr(data, "limit_tokens"):
        data.limit_tokens(most)


def most_tokens(model: nn.Module) -> int | None:
    """How many tokens of a caption the text encoders take at most; None: any number."""
    lengths = [getattr(encoder, "max_length", None) for _, encoder in _text_encoders(model)]
    return min((length for length in lengths if length is not None), default=None)


def _text_encoders(module: nn.Module, name: str = "") -> Iterator[tuple[str, Any]]:
    """The modules that say how many token ids they take, without those inside of them."""
    if isinstance(getattr(module, "vocab_size", None), int):
        yield name, module
        return
    for part, child in module.named_children():
        yield from _text_encoders(child, f"{name}.{part}" if name else part)
