"""A matcher whose scores are looked up in a table."""

from __future__ import annotations

import torch
from torch import nn

from itmkit.retrieval.encode import Gallery
from itmkit.retrieval.encoding import Encoding


class Table(nn.Module):
    """Scores looked up by the numbers that images and captions carry; it counts its work."""

    device = torch.device("cpu")

    def __init__(self, scores, pairs=None, *, top_k=0, weight=0.0):
        super().__init__()
        self.scores, self.pairs = scores, pairs
        self.rerank_top_k, self.rerank_weight = top_k, weight
        self.blocks, self.asked, self.largest = [], [], 0

    def encode_image(self, images):
        raise NotImplementedError

    encode_text = encode_image

    def score(self, images, texts):
        assert not self.training
        self.blocks.append((len(images), len(texts)))
        return self.scores[images.vector[:, 0]][:, texts.vector[:, 0]]

    def rerank(self, images, texts, pairs):
        assert not torch.is_grad_enabled()
        rows, columns = images.vector[pairs[:, 0], 0], texts.vector[pairs[:, 1], 0]
        self.asked += list(zip(rows.tolist(), columns.tolist(), strict=True))
        self.largest = max(self.largest, len(pairs))
        return self.pairs[rows, columns]


def rows(count):
    return Encoding(vector=torch.arange(count)[:, None])


def gallery(owners, n):
    m = len(owners)
    return Gallery(rows(n), rows(m), torch.arange(n), owners, torch.arange(m))


def naive_order(scores, pairs, k, weight):
    """Items of one query, best first, where no scores are equal."""
    order = sorted(range(len(scores)), key=lambda j: -scores[j])
    head = sorted(order[:k], key=lambda j: -((1 - weight) * scores[j] + weight * pairs[j]))
    return head + order[k:]
