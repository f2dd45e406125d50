"""Encoding a split: each sample once, modes put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from itmkit.data.batch import Batch, Images, Texts
from itmkit.metrics.functional import cross_modal_recall
from itmkit.retrieval.encode import Gallery, encode, evaluating
from itmkit.retrieval.encoding import Encoding
from itmkit.retrieval.rank import evaluate
from itmkit.retrieval.score import score_matrix


class Bag(nn.Module):
    """The mean of an image's regions; a bag of a caption's words."""

    rerank_top_k = 0
    rerank_weight = 0.0
    device = torch.device("cpu")

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.teacher = nn.Dropout(0.5).eval()
        self.embedding = nn.Embedding(30, 6)
        self.encoded = [0, 0]

    def encode_image(self, images):
        assert not torch.is_grad_enabled()
        self.encoded[0] += len(images)
        return Encoding(vector=self.drop(images.features).mean(1), boxes=images.boxes)

    def encode_text(self, texts):
        self.encoded[1] += len(texts)
        tokens = self.drop(self.embedding(texts.ids))
        return Encoding(vector=tokens.sum(1), tokens=tokens, mask=texts.mask)

    def score(self, images, texts):
        return images.vector @ texts.vector.T

    def rerank(self, images, texts, pairs):
        raise NotImplementedError


FEATURES = torch.randn(7, 4, 6, generator=torch.Generator().manual_seed(1))
WORDS = torch.randint(30, (14, 9), generator=torch.Generator().manual_seed(2))


def batch(rows, columns, length=9):
    rows, columns = torch.tensor(rows), torch.tensor(columns, dtype=torch.int64)
    ids = WORDS[columns, :length]
    return Batch(
        images=Images(FEATURES[rows], boxes=FEATURES[rows, :, :4]),
        texts=Texts(ids, torch.ones_like(ids, dtype=torch.bool)),
        image_ids=rows + 100,
        text_image_ids=columns // 2 + 100,
        text_ids=columns,
    )


def test_each_sample_once():
    matcher = Bag()
    batches = [
        batch([0, 1, 1], [0, 1, 2, 3, 2], 5),
        batch([2, 0], [4, 5, 0, 1]),
        batch([1], [3]),
        batch([6], [12, 13], 7),
    ]
    gallery = encode(matcher, batches)
    assert gallery.image_ids.tolist() == [100, 101, 102, 106]
    assert gallery.text_ids.tolist() == [0, 1, 2, 3, 4, 5, 12, 13]
    assert gallery.text_image_ids.tolist() == [100, 100, 101, 101, 102, 102, 106, 106]
    assert matcher.encoded == [4, 8]
    # Evaluation mode: no dropout.
    assert torch.equal(gallery.images.vector, FEATURES[[0, 1, 2, 6]].mean(1))
    assert torch.equal(gallery.images.boxes, FEATURES[[0, 1, 2, 6], :, :4])
    assert gallery.texts.mask.sum(1).tolist() == [5, 5, 5, 5, 9, 9, 7, 7]
    # Modes are back, and nothing carries a graph.
    assert not gallery.texts.tokens.requires_grad
    assert [matcher.training, matcher.drop.training, matcher.teacher.training] == [
        True,
        True,
        False,
    ]


def test_device():
    gallery = encode(Bag(), [batch([0, 1], [0, 1, 2, 3])], "meta")
    assert gallery.images.device.type == gallery.texts.device.type == "meta"
    assert gallery.image_ids.device.type == "cpu"


def test_gallery_cat_joins_parts_and_leaves_out_what_comes_again():
    """As processes hand in their shares: padded with samples that another has too."""
    first = encode(Bag(), [batch([0, 1], [0, 1, 2, 3], 5)])
    second = encode(Bag(), [batch([3, 1], [6, 7, 3, 2], 9)])
    whole = Gallery.cat([first, second])
    assert whole.image_ids.tolist() == [100, 101, 103]
    assert whole.text_ids.tolist() == [0, 1, 2, 3, 6, 7]
    assert whole.text_image_ids.tolist() == [100, 100, 101, 101, 103, 103]
    assert torch.equal(whole.images.vector, FEATURES[[0, 1, 3]].mean(1))
    assert torch.equal(whole.images.boxes, FEATURES[[0, 1, 3], :, :4])
    # The first comer stays; the shorter captions are padded.
    assert torch.equal(whole.texts.vector[:4], first.texts.vector)
    assert torch.equal(whole.texts.vector[4:], second.texts.vector[:2])
    assert whole.texts.mask.sum(1).tolist() == [5, 5, 5, 5, 9, 9]
    assert not whole.texts.tokens[:4, 5:].any()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
def test_gallery_cat_is_the_same_whoever_encoded_what(order):
    """Images by id, captions by image and then by id."""
    parts = [
        encode(Bag(), [one])
        for one in (batch([4, 2], [9, 8, 4]), batch([0], [1]), batch([6, 3], [12, 7, 6], 5))
    ]
    whole = Gallery.cat([parts[i] for i in order])
    assert whole.image_ids.tolist() == [100, 102, 103, 104, 106]
    assert whole.text_ids.tolist() == [1, 4, 6, 7, 8, 9, 12]
    assert whole.text_image_ids.tolist() == [100, 102, 103, 103, 104, 104, 106]
    assert torch.equal(whole.images.vector, FEATURES[[0, 2, 3, 4, 6]].mean(1))
    assert whole.texts.mask.sum(1).tolist() == [9, 9, 5, 5, 9, 9, 5]


def test_a_batch_of_images_without_captions_does_no_harm():
    matcher = Bag()
    alone = encode(matcher, [batch([2, 3], [])])
    assert (len(alone.images), len(alone.texts)) == (2, 0)
    assert alone.text_ids.dtype == alone.text_image_ids.dtype == torch.int64
    assert len(Gallery.cat([alone, alone.to("cpu")]).texts) == 0
    other = encode(matcher, [batch([0], [0, 1])])
    together = encode(matcher, [batch([2, 3], []), batch([0], [0, 1])])
    assert together.image_ids.tolist() == [102, 103, 100]
    for whole in (Gallery.cat([alone, other]), Gallery.cat([together])):
        assert whole.image_ids.tolist() == [100, 102, 103]
        assert torch.equal(whole.texts.tokens, other.texts.tokens)
        scores = score_matrix(matcher, whole.images, whole.texts)
        expected = cross_modal_recall(scores, whole.image_ids, whole.text_image_ids)
        assert evaluate(matcher, whole) == pytest.approx(expected)


def test_error_of_gallery_cat_of_nothing():
    with pytest.raises(ValueError, match="parts is empty; expected at least one gallery"):
        Gallery.cat([])


def test_gallery_to_moves_the_encodings_alone():
    gallery = encode(Bag(), [batch([0, 1], [0, 1, 2, 3])])
    moved = gallery.to("meta")
    assert moved.images.device.type == moved.texts.device.type == "meta"
    assert moved.images.vector.shape == gallery.images.vector.shape
    for ids in (moved.image_ids, moved.text_image_ids, moved.text_ids):
        assert ids.device.type == "cpu"
    assert gallery.images.device.type == "cpu"


def test_evaluating_restores_after_an_error():
    matcher = Bag()
    modes = []

    def fail():
        with evaluating(matcher):
            modes.extend([matcher.training, matcher.drop.training])
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert modes == [False, False]
    assert [matcher.training, matcher.drop.training, matcher.teacher.training] == [
        True,
        True,
        False,
    ]
    assert torch.is_grad_enabled()


def test_error_empty():
    with pytest.raises(ValueError, match="0 images and 0 captions"):
        encode(Bag(), [])
