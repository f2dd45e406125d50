from __future__ import annotations

import pickle

import pytest
import torch

from itmkit.data.caption_tokens import CaptionTokens
from itmkit.data.tokenizer import Caption, WordTokenizer, pad_texts
from itmkit.data.vocabulary import Vocabulary

CAPTIONS = ["a red dog runs", "", "grass", "a dog on red grass, a dog", "zebra"]


@pytest.fixture
def encoded() -> list[Caption]:
    tokenizer = WordTokenizer(Vocabulary.build(CAPTIONS, min_count=1))
    return [tokenizer.encode(caption) for caption in CAPTIONS]


def test_captions_are_what_the_tokenizer_gave(encoded: list[Caption]) -> None:
    tokens = CaptionTokens(encoded)
    assert len(tokens) == 5
    assert [tokens[row] for row in range(5)] == encoded
    assert tokens.lengths.tolist() == [len(caption.ids) for caption in encoded]
    again = pickle.loads(pickle.dumps(tokens))
    assert [again[row] for row in range(5)] == encoded


@pytest.mark.parametrize("rows", [[3, 1, 1], [4], [0, 1, 2, 3, 4], [1]])
def test_batch_is_that_of_pad_texts(encoded: list[Caption], rows: list[int]) -> None:
    expected = pad_texts([encoded[row].ids for row in rows], pad_id=9)
    tokens = CaptionTokens(encoded)
    for given in (rows, torch.tensor(rows)):
        texts = tokens.padded(given, pad_id=9)
        assert texts.ids.dtype == torch.int64
        assert torch.equal(texts.ids, expected.ids)
        assert torch.equal(texts.mask, expected.mask)


def test_shape_of_no_captions() -> None:
    assert CaptionTokens([]).padded([], pad_id=0).ids.shape == (0, 0)
