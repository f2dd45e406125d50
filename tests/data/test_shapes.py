"""The built-in dataset."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from itmkit.data import Regions, ShapesDataset, box_relations, scenes


def test_smoke_pixels():
    data = ShapesDataset("val", length=6, image_size=32)
    image = data.image(5)
    assert image.shape == (3, 32, 32)
    assert image.dtype == torch.float32
    assert len(data) == 6
    assert len(data.captions) == 30
    assert data.captions_of(1) == [5, 6, 7, 8, 9]


def test_pixels_are_about_normalised():
    data = ShapesDataset("train", length=64)
    pixels = torch.stack([data.image(row) for row in range(64)])
    assert abs(pixels.mean()) < 0.5
    assert 0.5 < pixels.std() < 1.5


def test_smoke_regions():
    data = ShapesDataset("val", length=4, regions=True)
    regions = data.image(2)
    assert isinstance(regions, Regions)
    assert regions.features.shape == (len(data.scenes[2]), 12 * 12 * 3 + 5)
    assert regions.boxes.shape == (len(data.scenes[2]), 4)
    assert ((regions.boxes >= 0) & (regions.boxes <= 1)).all()
    assert (regions.boxes[:, 2:] > regions.boxes[:, :2]).all()


def test_same_seed_same_data_and_another_seed_other_data():
    one, two, other = (ShapesDataset("train", length=20, seed=seed) for seed in (3, 3, 4))
    assert one.captions == two.captions
    assert all(torch.equal(one.image(row), two.image(row)) for row in range(20))
    assert one.captions != other.captions


def test_a_longer_dataset_starts_with_the_shorter_one():
    short, long = ShapesDataset("test", length=10), ShapesDataset("test", length=23)
    assert long.scenes[:10] == short.scenes
    assert long.captions[:50] == short.captions
    assert torch.equal(long.image(9), short.image(9))


def test_splits_are_disjoint_for_any_seeds():
    splits = {
        split: {
            frozenset((t.shape, t.colour, t.size, t.column, t.row) for t in scene)
            for seed in (0, 1)
            for scene in ShapesDataset(split, length=400, seed=seed).scenes
        }
        for split in ("train", "val", "test")
    }
    assert not splits["train"] & splits["val"]
    assert not splits["train"] & splits["test"]
    assert not splits["val"] & splits["test"]


def test_relevance_holds_for_own_captions_and_not_for_siblings_words():
    data = ShapesDataset("val", length=40)
    truth = data.relevance(torch.arange(40), torch.arange(200))
    own = data.caption_images == torch.arange(40)[:, None]
    assert truth[own].all()
    assert truth.sum() > own.sum()  # a sentence may be true of a sibling
    expected = [[data.sentences[m].holds(data.scenes[n]) for m in (7, 100)] for n in (3, 20, 1)]
    assert data.relevance(torch.tensor([3, 20, 1]), torch.tensor([7, 100])).tolist() == expected


def test_a_bag_of_words_cannot_tell_siblings_apart():
    """What is said of a scene is said of its sibling by the same words in another order."""
    data = ShapesDataset("val", length=40)
    seen = 0
    for row in range(0, 40, 4):  # every other family is a scene and its swapped colours
        scene, sibling = data.scenes[row : row + 2]
        recoloured = [a.colour for a, b in zip(scene, sibling, strict=True) if a.colour != b.colour]
        first, second = (scenes.COLOUR_NAMES[colour] for colour in recoloured)
        for n in data.captions_of(row):
            sentence, other = data.sentences[n], swap_colours(data.sentences[n], *recoloured)
            if {first, second} <= set(sentence.text.split()):
                seen += 1
                assert sorted(other.text.split()) == sorted(sentence.text.split())
                assert [sentence.holds(scene), sentence.holds(sibling)] == [True, False]
                assert [other.holds(scene), other.holds(sibling)] == [False, True]
    assert seen >= 10


def swap_colours(sentence, a, b):
    """The sentence with two colours exchanged, in its words and in what it claims."""
    first, second = scenes.COLOUR_NAMES[a], scenes.COLOUR_NAMES[b]
    words = {first: second, second: first}
    colours = {a: b, b: a}
    return scenes.Sentence(
        " ".join(words.get(word, word) for word in sentence.text.split(" ")),
        tuple((colours.get(colour, colour), *rest) for colour, *rest in sentence.mentions),
        sentence.orders,
    )


def test_vocabulary_has_all_words():
    data = ShapesDataset("train", length=50)
    words = {w for caption in data.captions for w in caption.replace(",", "").split()}
    assert words <= set(data.vocabulary.words)
    assert set(scenes.VOCABULARY) <= set(data.vocabulary.words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split is 'dev'; expected one of 'train', 'val', 'test'"),
        ({"length": 0}, "length is 0; expected 1 or more"),
        ({"image_size": 8}, "image_size is 8; expected 16 or more"),
    ],
)
def test_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShapesDataset(**arguments)


def test_length_by_split():
    lengths = {"train": 8, "val": 4}
    assert len(ShapesDataset("train", length=lengths)) == 8
    assert len(ShapesDataset("val", length=lengths)) == 4
    assert len(ShapesDataset("test", length=lengths)) == 1000


def test_overlapping_things_are_related_and_seen():
    plain, close = (
        ShapesDataset("val", length=40, overlapping=overlapping) for overlapping in (False, True)
    )
    assert close.captions == plain.captions
    neighbours, related = 0, 0
    for row, scene in enumerate(close.scenes):
        boxes = torch.tensor([thing.box for thing in scene])
        assert boxes.min() >= 0
        assert boxes.max() <= 1
        places = torch.tensor([(thing.column, thing.row) for thing in scene])
        near = (places[:, None] - places).abs().sum(-1) == 1
        neighbours += int(near.sum())
        related += int((box_relations(boxes, 0.2).bool() & near).sum())
        assert (box_relations(boxes, None)[near] > 0.05).all()
        apart = torch.tensor([thing.box for thing in plain.scenes[row]])
        assert box_relations(apart, None).equal(torch.eye(len(scene)))
        for k, thing in enumerate(scene):  # in another colour, the picture is another
            recoloured = replace(thing, colour=(thing.colour + 1) % len(scenes.COLOUR_NAMES))
            other = (*scene[:k], recoloured, *scene[k + 1 :])
            pictures = (
                scenes.paint(s, 64, np.random.default_rng(0)).astype(int) for s in (scene, other)
            )
            assert (abs(next(pictures) - next(pictures)).sum(-1) > 60).sum() > 30
    assert related > 0.6 * neighbours > 0
