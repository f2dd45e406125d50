"""Encoding a split: each sample once, modes put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from itmkit.data.batch import Batch, Images, Texts
from itmkit.retrieval.encode import encode, evaluating
from itmkit.retrieval.encoding import Encoding


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
    rows, columns = torch.tensor(rows), torch.tensor(columns)
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
