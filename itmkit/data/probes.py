"""Compositional probes of the built-in scenes: a true and a false sentence of the same words."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from itmkit.checks import check_seed
from itmkit.data import scenes
from itmkit.data.scenes import Sentence
from itmkit.data.shapes import ShapesDataset

KINDS = ("colours", "relations", "counts")
_OPPOSITE = {
    word: other
    for pair in (("left", "right"), ("above", "below"), ("over", "under"))
    for word, other in (pair, pair[::-1])
}


class Probe(NamedTuple):
    """Two sentences about a scene of which exactly one is true.

    Args:
        image: row of the scene.
        kind: what differs: ``colours``, ``relations`` or ``counts``.
        true: a sentence of the dataset that is true of the scene.
        false: the same with two colours exchanged; with each relation turned into its opposite
            (left and right, above and below); or with another number of things.
    """

    image: int
    kind: str
    true: Sentence
    false: Sentence


def scene_probes(dataset: ShapesDataset, *, seed: int = 0) -> list[Probe]:
    """A probe of each kind for each sentence of a dataset that allows one.

    Every sentence names two things or more, so each has a probe of ``colours``; those that say how
    two things stand to each other have one of ``relations``; those that say how many things there
    are (``ShapesDataset(counts=True)``) have one of ``counts``. Of the last, some are left out, so
    that of two numbers each is the true one as often: few things are named more often than many.

    Args:
        dataset: the scenes and their sentences.
        seed: of which colours, and which number.

    Example:
        >>> probes = scene_probes(ShapesDataset("test", length=2))
        >>> probes[1].true.text
        'a large white cross is to the left of a large green ring'
        >>> probes[1].kind, probes[1].false.text
        ('relations', 'a large white cross is to the right of a large green ring')
    """
    check_seed(seed=seed)
    rng = np.random.default_rng(seed)
    found: list[Probe] = []
    counts: list[Probe] = []
    for row, sentence in zip(dataset.caption_images.tolist(), dataset.sentences, strict=True):
        found.append(Probe(row, "colours", sentence, _other_colours(sentence, rng)))
        if sentence.orders:
            found.append(Probe(row, "relations", sentence, _opposite(sentence)))
        if sentence.count is not None:
            counts.append(Probe(row, "counts", sentence, _other_count(sentence, rng)))
    return sorted([*found, *_balanced(counts)], key=lambda one: one.image)


def _balanced(probes: list[Probe]) -> list[Probe]:
    """The first probes of counts, each number being true as often as it is false beside another."""
    groups: dict[tuple[int, int | None, int | None], list[Probe]] = {}
    for one in probes:
        key = (len(one.true.mentions), one.true.count, one.false.count)
        groups.setdefault(key, []).append(one)
    kept = []
    for (named, true, false), group in groups.items():
        kept += group[: len(groups.get((named, false, true), []))]
    return kept


def _other_colours(sentence: Sentence, rng: np.random.Generator) -> Sentence:
    """The sentence with the colours of two of its things exchanged."""
    a, b = rng.permutation(len(sentence.mentions))[:2].tolist()
    mentions = list(sentence.mentions)
    mentions[a] = (sentence.mentions[b][0], *sentence.mentions[a][1:])
    mentions[b] = (sentence.mentions[a][0], *sentence.mentions[b][1:])
    first, second = (scenes.COLOUR_NAMES[sentence.mentions[one][0]] for one in (a, b))
    exchanged = {first: second, second: first}
    words = [exchanged.get(word, word) for word in sentence.text.split()]
    for place in range(len(words) - 1):
        if words[place] in ("a", "an"):
            words[place] = "an" if words[place + 1][0] in "aeiou" else "a"
    return replace(sentence, text=" ".join(words), mentions=tuple(mentions))


def _opposite(sentence: Sentence) -> Sentence:
    """The sentence with each relation turned into its opposite."""
    words = [_OPPOSITE.get(word, word) for word in sentence.text.split()]
    orders = tuple((second, first, axis) for first, second, axis in sentence.orders)
    return replace(sentence, text=" ".join(words), orders=orders)


def _other_count(sentence: Sentence, rng: np.random.Generator) -> Sentence:
    """The sentence with another number of things, no less than it names."""
    _, *rest = sentence.text.split()
    least = len(sentence.mentions)
    others = [count for count in scenes.NUMBERS if count != sentence.count and count >= least]
    count = others[int(rng.integers(len(others)))]
    return replace(sentence, text=" ".join([scenes.NUMBERS[count], *rest]), count=count)
