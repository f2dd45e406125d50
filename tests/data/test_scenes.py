"""Scenes, sentences about them, and which are true."""

import numpy as np
import pytest

from itmkit.data import scenes
from itmkit.data.scenes import Sentence, Thing


@pytest.fixture
def worlds():
    rng = np.random.default_rng(0)
    drawn = [scenes.shift_things(scenes.random_scene(rng), rng) for _ in range(60)]
    return drawn, [s for scene in drawn for s in scenes.sentences(scene, 5, rng)]


def colours_swapped(sentence):
    """The sentence with the colours of its first two mentions exchanged, in words and claims."""
    (a, *rest_a), (b, *rest_b), *others = sentence.mentions
    first, second = scenes.COLOUR_NAMES[a], scenes.COLOUR_NAMES[b]
    words = {first: second, second: first}
    text = " ".join(words.get(word, word) for word in sentence.text.split(" "))
    return Sentence(text, ((b, *rest_a), (a, *rest_b), *others), sentence.orders)


def test_relevance_naive_loop_reference(worlds):
    drawn, captions = worlds
    expected = [[caption.holds(scene) for caption in captions] for scene in drawn]
    assert np.array_equal(scenes.relevance(drawn, captions), expected)


def test_sentences_are_true_and_different(worlds):
    drawn, captions = worlds
    for n, scene in enumerate(drawn):
        own = captions[5 * n : 5 * n + 5]
        assert all(sentence.holds(scene) for sentence in own)
        assert len({sentence.text for sentence in own}) == 5


def test_swapping_two_colours_makes_a_false_sentence(worlds):
    drawn, captions = worlds
    for n, sentence in enumerate(captions):
        swapped = colours_swapped(sentence)
        assert swapped.text != sentence.text
        assert not swapped.holds(drawn[n // 5])


def test_swapping_places_reverses_what_is_said_of_them():
    scene = (Thing(0, 0, 0, column=0, row=0), Thing(1, 1, 0, column=2, row=0))
    left_of = Sentence("", ((0, 0, -1), (1, 1, -1)), ((0, 1, 0),))
    assert left_of.holds(scene)
    assert not left_of.holds(scenes.swap_places(scene, 0, 1))


@pytest.mark.parametrize("swap", [scenes.swap_colours, scenes.swap_places])
def test_siblings_share_their_signature(worlds, swap):
    for scene in worlds[0]:
        assert swap(scene, 0, 1) != scene
        assert scenes.signature(swap(scene, 0, 1)) == scenes.signature(scene)


def test_a_size_left_open_fits_both_and_a_named_one_only_its_own():
    small = (Thing(0, 0, 0, column=0, row=0), Thing(1, 1, 0, column=1, row=1))
    for size, true in ((-1, True), (0, True), (1, False)):
        assert Sentence("", ((0, 0, size), (1, 1, -1))).holds(small) is true


def test_words_are_all_in_the_vocabulary(worlds):
    said = {word for caption in worlds[1] for word in caption.text.replace(",", "").split()}
    assert said <= set(scenes.VOCABULARY)


@pytest.mark.parametrize("shape", range(len(scenes.SHAPES)))
def test_paint_puts_a_thing_of_its_colour_where_its_box_is(shape):
    thing = Thing(shape, scenes.COLOUR_NAMES.index("red"), 1, column=2, row=0)
    picture = scenes.paint((thing,), 96, np.random.default_rng(0)).astype(int)
    red = (picture[..., 0] > 170) & (picture[..., 1] < 90)
    rows, columns = np.nonzero(red)
    x1, y1, x2, y2 = (96 * v for v in thing.box)
    assert len(rows) > 30
    assert x1 - 1 <= columns.min()
    assert columns.max() <= x2
    assert y1 - 1 <= rows.min()
    assert rows.max() <= y2
    assert columns.max() + 1 - columns.min() > 0.8 * (x2 - x1)


def test_shapes_look_different():
    outlines = []
    for shape in range(len(scenes.SHAPES)):
        thing = Thing(shape, scenes.COLOUR_NAMES.index("white"), 0, column=1, row=1)
        outlines.append(scenes.paint((thing,), 64, np.random.default_rng(0)).min(-1) > 180)
    for a in range(len(outlines)):
        for b in range(a):
            assert (outlines[a] ^ outlines[b]).sum() >= 8, (a, b)
