from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from itmkit.data.caption_noise import CaptionNoise
from itmkit.data.tokenizer import Caption, TransformersTokenizer, WordTokenizer
from itmkit.data.vocabulary import Vocabulary


@pytest.fixture
def tokenizer() -> WordTokenizer:
    words = [f"w{i}" for i in range(100)]
    return WordTokenizer(Vocabulary.build([" ".join(words)], min_count=1), max_length=200)


def test_shares_are_those_of_the_papers(tokenizer: WordTokenizer) -> None:
    caption = tokenizer.encode(" ".join(f"w{i}" for i in range(100)))
    noise, fates, repeats = CaptionNoise(), Counter[str](), 300
    for _ in range(repeats):
        noisy = noise(caption, tokenizer)
        left = dict(zip(noisy.words[1:-1], noisy.ids[1:-1], strict=True))
        for word in range(100):
            token = caption.ids[word + 1]
            now = left.get(word)
            fate = {None: "drop", token: "keep", tokenizer.mask_id: "mask"}.get(now, "random")
            fates[fate] += 1
    share = {fate: count / (100 * repeats) for fate, count in fates.items()}
    # three standard deviations of 30,000 draws are below 0.007
    assert share["keep"] == pytest.approx(0.80, abs=0.007)
    assert share["mask"] == pytest.approx(0.10, abs=0.007)
    assert share["drop"] == pytest.approx(0.08, abs=0.007)
    assert share["random"] == pytest.approx(0.02, abs=0.007)


def test_special_tokens_and_one_word_stay(tokenizer: WordTokenizer) -> None:
    noise = CaptionNoise(p=1.0, mask=0.0, random=0.0, drop=1.0)
    caption = tokenizer.encode("w1 w2 w3 w4")
    survivors = set()
    for _ in range(60):
        noisy = noise(caption, tokenizer)
        assert (noisy.ids[0], noisy.ids[-1]) == (1, 2)
        assert len(noisy.ids) == len(noisy.words) == 3
        survivors.add(noisy.ids[1])
    assert survivors == set(caption.ids[1:-1])
    assert noise(tokenizer.encode("w7"), tokenizer).ids == tokenizer.encode("w7").ids
    assert noise(tokenizer.encode("?"), tokenizer).ids == [1, 2]


def test_pieces_of_a_word_share_its_fate(bert_folder: Path) -> None:
    tokenizer = TransformersTokenizer(bert_folder)
    caption = tokenizer.encode("running cats on grass")  # run ##ning, cat ##s, on, grass
    whole = {word: caption.words.count(word) for word in range(4)}
    noise = CaptionNoise(p=0.5)
    for _ in range(50):
        noisy = noise(caption, tokenizer)
        for word in range(4):
            ids = [i for i, w in zip(*noisy, strict=True) if w == word]
            before = [i for i, w in zip(*caption, strict=True) if w == word]
            assert len(ids) in (0, whole[word])
            masked = [i == tokenizer.mask_id for i in ids]
            assert len(set(masked)) <= 1
            if not any(masked) and ids != before:
                assert not set(ids) & tokenizer.special_ids


def test_noise_follows_its_generator(tokenizer: WordTokenizer) -> None:
    caption = tokenizer.encode(" ".join(f"w{i}" for i in range(50)))
    noise = CaptionNoise()
    first = noise(caption, tokenizer, torch.Generator().manual_seed(3))
    state = torch.get_rng_state()
    assert noise(caption, tokenizer, torch.Generator().manual_seed(3)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert noise(caption, tokenizer, torch.Generator().manual_seed(4)) != first


def test_zero_probability_changes_nothing(tokenizer: WordTokenizer) -> None:
    caption = tokenizer.encode("w1 w2 w3")
    assert CaptionNoise(p=0.0)(caption, tokenizer) == caption


def test_error_of_probabilities() -> None:
    with pytest.raises(ValueError, match=r"p is 1\.5"):
        CaptionNoise(p=1.5)
    with pytest.raises(ValueError, match=r"mask \+ random \+ drop is 1.2"):
        CaptionNoise(mask=0.5, random=0.5, drop=0.2)


def test_error_where_there_is_no_mask_token(tokenizer: WordTokenizer) -> None:
    tokenizer.mask_id = None
    caption = Caption([1, 5, 2], [-1, 0, -1])
    with pytest.raises(ValueError, match="no mask token"):
        CaptionNoise()(caption, tokenizer)
    CaptionNoise(mask=0.0)(caption, tokenizer)
