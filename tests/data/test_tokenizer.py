from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch

from itmkit.data.tokenizer import (
    Caption,
    CaptionTokens,
    TransformersTokenizer,
    WordTokenizer,
    pad_texts,
)
from itmkit.data.vocabulary import Vocabulary
from itmkit.pretrained import sources, weights_follow


@pytest.fixture
def vocabulary() -> Vocabulary:
    return Vocabulary.build(["a red dog runs on grass"], min_count=1)


def test_words_stand_between_start_and_end(vocabulary: Vocabulary) -> None:
    caption = WordTokenizer(vocabulary).encode("A RED zebra, runs!")
    words = [vocabulary.words[i] for i in caption.ids]
    assert words == ["<start>", "a", "red", "<unk>", "runs", "<end>"]
    assert caption.words == [-1, 0, 1, 2, 3, -1]
    assert WordTokenizer(vocabulary).encode("...").ids == [1, 2]


def test_words_are_cut_to_max_length(vocabulary: Vocabulary) -> None:
    caption = WordTokenizer(vocabulary, max_length=4).encode("a red dog runs on grass")
    assert [vocabulary.words[i] for i in caption.ids] == ["<start>", "a", "red", "<end>"]


def test_random_tokens_are_never_reserved(vocabulary: Vocabulary, bert_folder: Path) -> None:
    words = WordTokenizer(vocabulary)
    assert words.content_ids.tolist() == list(range(5, len(words)))
    pieces = TransformersTokenizer(bert_folder)
    assert pieces.content_ids.tolist() == list(range(6, 16))  # nor are they [unused0]


def test_word_tokenizer_reads_a_saved_vocabulary(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path / "words.json")
    tokenizer = WordTokenizer(tmp_path / "words.json")
    assert tokenizer.vocabulary == vocabulary
    assert len(tokenizer) == len(vocabulary)


def test_word_pieces_know_their_word(bert_folder: Path) -> None:
    tokenizer = TransformersTokenizer(bert_folder)
    caption = tokenizer.encode("A running dog, cats.")
    assert caption.ids == [2, 6, 11, 12, 8, 1, 9, 10, 15, 3]
    assert caption.words == [-1, 0, 1, 1, 2, 3, 4, 4, 5, -1]
    assert (tokenizer.pad_id, tokenizer.mask_id, len(tokenizer)) == (0, 4, 16)
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}


def test_word_pieces_are_cut_to_max_length(bert_folder: Path) -> None:
    caption = TransformersTokenizer(bert_folder, max_length=5).encode("a red dog runs on grass")
    assert caption.ids == [2, 6, 7, 8, 3]


@pytest.mark.parametrize("caption", ["a red dog", "a red dog runs"])
def test_a_caption_of_just_the_length_is_not_cut(
    caption: str, vocabulary: Vocabulary, bert_folder: Path
) -> None:
    for tokenizer in (WordTokenizer(vocabulary), TransformersTokenizer(bert_folder)):
        tokenizer.max_length = len(tokenizer.encode(caption).ids)
        assert not tokenizer.cuts(caption)
        tokenizer.max_length -= 1
        assert tokenizer.cuts(caption)


def test_transformers_tokenizer_goes_to_worker_processes(bert_folder: Path) -> None:
    tokenizer = TransformersTokenizer(bert_folder)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("a dog") == tokenizer.encode("a dog")


def test_a_caption_of_nothing_is_one_token(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({"a": 0, "?": 1, "<pad>": 2}, unk_token="?"))
    bare = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="?", pad_token="<pad>")
    bare.save_pretrained(tmp_path)
    assert TransformersTokenizer(tmp_path).encode("") == ([2], [-1])


def test_error_of_a_tokenizer_without_padding(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    model = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=model, unk_token="?").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no pad token"):
        TransformersTokenizer(tmp_path)


def test_error_of_a_length_without_room(vocabulary: Vocabulary) -> None:
    with pytest.raises(ValueError, match="max_length is 2"):
        WordTokenizer(vocabulary, max_length=2)


def test_shape_of_padded_texts() -> None:
    texts = pad_texts([[1, 7, 8, 2], [1, 2], [1, 9, 2]], pad_id=6)
    assert texts.ids.tolist() == [[1, 7, 8, 2], [1, 2, 6, 6], [1, 9, 2, 6]]
    assert texts.mask.sum(1).tolist() == [4, 2, 3]
    assert len(texts) == 3
    assert pad_texts([], pad_id=0).ids.shape == (0, 0)


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


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [
        ("SiglipTokenizer", ["a", "red", "dog", "</s>"]),
        ("GemmaTokenizer", ["a", "red", ",", "dog"]),
    ],
)
def test_captions_for_siglip_are_as_it_was_trained(
    kind: str, tokens: list[str], tmp_path: Path
) -> None:
    """SigLIP without punctuation, SigLIP 2 with it; both in lower case, also from a checkpoint."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "a", "red", "dog", ","]
    pieces = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=pieces, **special).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": kind}))
    tokenizer = TransformersTokenizer(tmp_path)
    found = [words[i] for i in tokenizer.encode("A  RED, Dog").ids]
    assert found[: len(tokens)] == tokens
    with weights_follow(sources(tokenizer)):
        again = TransformersTokenizer(tmp_path)
    assert again.encode("A  RED, Dog") == tokenizer.encode("A  RED, Dog")
