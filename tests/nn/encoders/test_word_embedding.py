from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from itmkit.checks import InputError
from itmkit.nn import BagOfWords, BiGRU, WordEmbedding

IDS, MASK = torch.tensor([[1, 2, 6]]), torch.ones(1, 3, dtype=torch.bool)


def test_with_a_size_it_is_an_embedding_of_torch() -> None:
    torch.manual_seed(3)
    words = WordEmbedding(10, 4)
    torch.manual_seed(3)
    reference = nn.Embedding(10, 4)
    assert torch.equal(words(IDS, MASK), reference(IDS))
    assert list(words.state_dict()) == list(reference.state_dict())


def test_vectors_follow_from_the_seed_and_not_from_when_they_are_made() -> None:
    torch.manual_seed(3)
    early, after = WordEmbedding(None, 4), torch.rand(1)
    early.complete(10)
    torch.manual_seed(3)
    late = WordEmbedding(None, 4)
    assert torch.equal(torch.rand(1), after)
    late.complete(10)
    assert torch.equal(early.weight, late.weight)
    assert 0.5 < float(early.weight.detach().std()) < 1.5
    other = WordEmbedding(None, 4)
    other.complete(10)
    assert not torch.equal(other.weight, late.weight)


def test_the_parameter_stays_the_same_object() -> None:
    """Optimizers and frozen parameters made before still mean it."""
    words = WordEmbedding(None, 4).to(torch.bfloat16)
    parameter = words.weight
    words.complete(10)
    words.complete(99)  # it has its rows
    assert words.weight is parameter
    assert words.weight.shape == (10, 4)
    assert words.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("rows", [None, 3, 10])
def test_a_state_dict_brings_its_number_of_words(rows: int | None) -> None:
    source = WordEmbedding(7, 4)
    target = nn.ModuleDict({"words": WordEmbedding(None, 4)})
    if rows is not None:
        target["words"].complete(rows)
    copied = copy.deepcopy(target)
    for module in (target, copied):
        module.load_state_dict({"words.weight": source.weight})
        assert torch.equal(module["words"](IDS, MASK), source(IDS, MASK))
    assert target["words"].weight is not copied["words"].weight


def test_a_given_number_of_words_is_kept() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        WordEmbedding(10, 4).load_state_dict(WordEmbedding(7, 4).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):
        WordEmbedding(None, 5).load_state_dict(WordEmbedding(7, 4).state_dict())


@pytest.mark.parametrize("encoder", [BiGRU(dim=4, embed_dim=3), BagOfWords(dim=4)])
def test_error_of_an_encoder_that_was_never_completed(encoder: BiGRU | BagOfWords) -> None:
    assert encoder.vocab_size == 0
    with pytest.raises(InputError, match="vocab_size is None; expected a number"):
        encoder(IDS, MASK)
    encoder.embedding.complete(7)
    assert encoder.vocab_size == 7
    assert encoder(IDS, MASK)[0].shape == (1, 3, 4)


def test_word_vectors_have_a_row_a_word(tmp_path: Path) -> None:
    path = tmp_path / "vectors.npy"
    np.save(path, np.arange(28.0).reshape(7, 4))
    words = WordEmbedding(None, 4, word_vectors=path)
    with pytest.raises(InputError, match=rf"{path} has the shape \(7, 4\); expected \(8, 4\)"):
        words.complete(8)
    words.complete(7)
    assert words.weight[6].tolist() == [24.0, 25.0, 26.0, 27.0]
    with pytest.raises(InputError, match=r"shape \(7, 4\); expected \(7, 5\), a row a word id"):
        WordEmbedding(None, 5, word_vectors=path)
    np.save(path, np.array("words"))
    with pytest.raises(
        InputError, match=f"{path} cannot be read .*; expected a .npy file of numbers"
    ):
        WordEmbedding(None, 4, word_vectors=path)
    path.write_text("dog 0.1 0.2")
    with pytest.raises(
        InputError, match=f"{path} cannot be read .*; expected a .npy file of numbers"
    ):
        WordEmbedding(7, 4, word_vectors=path)
