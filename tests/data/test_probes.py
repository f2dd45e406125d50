"""Pairs of sentences of which exactly one is true of a scene."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from itmkit.data import ShapesDataset
from itmkit.data.probes import scene_probes
from itmkit.data.tokenizer import WordTokenizer

SHAPES = ShapesDataset("test", length=80, counts=True)
PROBES = scene_probes(SHAPES)


def test_exactly_one_sentence_is_true() -> None:
    for one in PROBES:
        scene = SHAPES.scenes[one.image]
        assert one.true.holds(scene), one
        assert not one.false.holds(scene), one
        assert one.true.text != one.false.text


def test_every_sentence_has_its_probes() -> None:
    counts = Counter(one.kind for one in PROBES)
    sentences = SHAPES.sentences
    assert counts["colours"] == len(sentences) == 400
    assert counts["relations"] == sum(bool(one.orders) for one in sentences) > 200
    assert 100 < counts["counts"] <= sum(one.count is not None for one in sentences)
    plain = scene_probes(ShapesDataset("test", length=80))
    assert {one.kind for one in plain} == {"colours", "relations"}


def test_the_words_of_both_are_known_and_those_of_colours_the_same() -> None:
    tokenizer = WordTokenizer(SHAPES.vocabulary)
    for one in PROBES:
        true, false = (tokenizer.encode(text.text).ids for text in (one.true, one.false))
        assert tokenizer.unk_id not in true + false
        assert len(true) == len(false)
        if one.kind == "colours":
            assert Counter(true) == Counter(false)
            assert " a orange" not in f" {one.false.text}"
            assert " an red" not in f" {one.false.text}"


def test_sentences_alone_do_not_give_the_answer_away() -> None:
    """Each number is as often true as it is false, and so, about, is each relation."""
    numbers = Counter()
    for one in PROBES:
        if one.kind == "counts":
            numbers[one.true.text.split()[0]] += 1
            numbers[one.false.text.split()[0]] -= 1
            assert one.false.count is not None
            assert one.false.count >= len(one.false.mentions)
    assert len(numbers) == 3
    assert set(numbers.values()) == {0}
    relations = [one for one in PROBES if one.kind == "relations"]
    left = [one for one in relations if "left" in one.true.text or "left" in one.false.text]
    share = sum("left" in one.true.text for one in left) / len(left)
    assert 0.4 < share < 0.6


def test_they_follow_from_the_seed() -> None:
    assert scene_probes(SHAPES) == PROBES
    assert scene_probes(SHAPES, seed=1) != PROBES


def test_counts_say_how_many_things_there_are() -> None:
    plain = ShapesDataset("test", length=80)
    counted = [one for one in SHAPES.sentences if one.count is not None]
    assert len(counted) == 3 * 80  # every other one of five
    for row, sentence in zip(SHAPES.caption_images.tolist(), SHAPES.sentences, strict=True):
        assert sentence.count in (None, len(SHAPES.scenes[row]))
        assert sentence.holds(SHAPES.scenes[row])
    assert SHAPES.scenes == plain.scenes
    assert set(plain.vocabulary.words) < set(SHAPES.vocabulary.words)
    rows = torch.arange(80), torch.arange(400)
    expected = [[one.holds(scene) for one in SHAPES.sentences] for scene in SHAPES.scenes]
    assert SHAPES.relevance(*rows).tolist() == expected


@pytest.mark.parametrize("split", ["train", "val"])
def test_without_counts_all_is_as_before(split: str) -> None:
    assert "things" not in " ".join(ShapesDataset(split, length=8).captions)
