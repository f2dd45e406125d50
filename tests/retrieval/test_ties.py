"""Equal captions whose scores differ in the last bits are tied, the same way on every path."""

from __future__ import annotations

import warnings

import pytest
import torch
from score_table import Table, naive_order, rows
from torch import Tensor, nn
from torch.nn import functional as F

from itmkit.metrics import CrossModalRecall, cross_modal_recall, recall
from itmkit.metrics import functional as metrics_functional
from itmkit.retrieval import Encoding, Gallery, best_captions, best_images, evaluate, score_matrix
from itmkit.systems import cosine_scores

N, DUPLICATES = 150, 60


class Cosine(nn.Module):
    """Products of vectors, in both stages."""

    device = torch.device("cpu")
    rerank_top_k, rerank_weight = 0, 0.5

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        return cosine_scores(images.vector, texts.vector)

    def rerank(self, images: Encoding, texts: Encoding, pairs: Tensor) -> Tensor:
        return (images.vector[pairs[:, 0]] * texts.vector[pairs[:, 1]]).sum(1)


def duplicates(noise: float = 0.0) -> Gallery:
    """Unit vectors; the last images are one image, and their captions one caption.

    Every other image is found by its caption, and its caption by it.
    """
    g = torch.Generator().manual_seed(3)
    vector = torch.randn(N, 256, generator=g)
    vector[-DUPLICATES:] = vector[-1]
    vector = F.normalize(vector, dim=1)
    text = vector + noise * torch.randn(N, 256, generator=g)
    ids = torch.arange(N)
    return Gallery(Encoding(vector=vector), Encoding(vector=text), ids, ids, ids)


def recalls(own: Gallery, chunk_size: int) -> dict[str, dict[str, float]]:
    """Recall of a gallery on every path there is."""
    image, text = own.images.vector, own.texts.vector
    ids, owners = own.image_ids, own.text_image_ids
    metric = CrossModalRecall()
    metric.update(image, text, ids, owners)
    scores = score_matrix(Cosine(), own.images, own.texts, chunk_size=chunk_size)
    second = {"top_k": N, "chunk_size": chunk_size}
    return {
        "metric": {key: value.item() for key, value in metric.compute().items()},
        "one product": cross_modal_recall(image @ text.T, ids, owners),
        "matrix": cross_modal_recall(scores, ids, owners),
        "columns": cross_modal_recall(scores.T.contiguous().T, ids, owners),
        "streaming": evaluate(Cosine(), own, chunk_size=chunk_size),
        "second stage": evaluate(Cosine(), own, **second),
        "second stage alone": evaluate(Cosine(), own, weight=1.0, **second),
        "few candidates": evaluate(Cosine(), own, top_k=5, chunk_size=chunk_size),
    }


@pytest.mark.filterwarnings("ignore:the rank of")
@pytest.mark.parametrize("noise", [0.0, 1e-8])
@pytest.mark.parametrize("chunk_size", [23, 64, 149, 256])
def test_every_path_counts_duplicates_against_the_query(chunk_size, noise, monkeypatch):
    """The last block is narrower than the others, so its products add up in another order."""
    monkeypatch.setattr(recall, "_TILE", chunk_size)
    monkeypatch.setattr(metrics_functional, "_TILE_ELEMENTS", chunk_size * N)
    own = duplicates(noise)
    exact = 100 * (N - DUPLICATES) / N
    for path, found in recalls(own, chunk_size).items():
        assert found["i2t_r1"] == pytest.approx(exact), path
        assert found["t2i_r1"] == pytest.approx(exact), path
        mean = ((N - DUPLICATES) * 1 + DUPLICATES * DUPLICATES) / N
        assert found["i2t_meanr"] == pytest.approx(mean), path
        assert found["t2i_meanr"] == pytest.approx(mean), path


@pytest.mark.filterwarnings("ignore:the rank of")
@pytest.mark.parametrize("chunk_size", [23, 64, 256])
def test_paths_agree_on_ordinary_vectors(chunk_size):
    g = torch.Generator().manual_seed(4)
    own = duplicates()
    own.texts.vector.add_(0.1 * torch.randn(N, 256, generator=g))
    own.texts.vector[::7] = own.texts.vector[3]
    own.texts.vector.copy_(F.normalize(own.texts.vector, dim=1))
    found = recalls(own, chunk_size)
    matrix = found["matrix"]
    assert 0 < matrix["i2t_r1"] < 100
    del found["few candidates"]
    assert found.pop("metric") == {k: torch.tensor(v).item() for k, v in matrix.items()}  # in fp32
    assert all(one == matrix for one in found.values())


def nearly_equal(queries: int, items: int) -> Tensor:
    """Scores in three classes, and rounding noise in favour of the last rows."""
    classes = torch.arange(items) % 3
    noise = torch.arange(items) / items * 1e-6
    return (classes + noise).expand(queries, items)


@pytest.mark.parametrize("k", [1, 5, 60, 150])
@pytest.mark.parametrize("chunk_size", [16, 256])
def test_search_puts_tied_items_in_the_order_of_their_rows(k, chunk_size):
    """More of them than are kept besides those wanted, wherever the blocks end."""
    scores = nearly_equal(4, 150)
    expected = [row for start in (2, 1, 0) for row in range(start, 150, 3)][:k]
    for found in (
        best_captions(Table(scores), rows(4), rows(150), k, chunk_size=chunk_size),
        best_images(Table(scores.T), rows(4), rows(150), k, chunk_size=chunk_size),
    ):
        values, indices = found
        assert indices.tolist() == [expected] * 4
        assert torch.equal(values, scores[:, expected])


def test_only_the_last_places_may_be_tied():
    """The items in front of the tied ones stay, and so do the queries without ties."""
    g = torch.Generator().manual_seed(1)
    scores = nearly_equal(5, 150).clone()
    scores[:, 149], scores[:, 148] = 9, 10
    scores[2] = torch.randn(150, generator=g)
    _, found = best_captions(Table(scores), rows(5), rows(150), 4, chunk_size=16)
    assert found[[0, 1, 3, 4]].tolist() == [[148, 149, 2, 5]] * 4
    assert found[2].tolist() == naive_order(scores[2].tolist(), [], 0, 0.0)[:4]


def test_search_among_candidates_puts_tied_blends_in_the_order_of_their_rows():
    scores, pairs = torch.randn(3, 40), nearly_equal(3, 40)
    _, found = best_captions(
        Table(scores, pairs, top_k=40, weight=1.0), rows(3), rows(40), 40, chunk_size=16
    )
    expected = [row for start in (2, 1, 0) for row in range(start, 40, 3)]
    assert found.tolist() == [expected] * 3


def test_search_of_duplicates_is_the_same_in_any_chunks():
    own = duplicates(1e-8)
    found = [
        best_images(Cosine(), own.texts, own.images, 20, top_k=top_k, chunk_size=chunk_size)[1]
        for chunk_size in (23, 64, 256)
        for top_k in (0, 5)
    ]
    assert all(torch.equal(one, found[0]) for one in found)
    assert found[0][-1].tolist() == list(range(N - DUPLICATES, N - DUPLICATES + 20))


def test_a_warning_tells_how_often_ties_decide():
    noise = torch.randn(N, N, generator=torch.Generator().manual_seed(0))
    scores = torch.eye(N) + 1e-7 * noise
    scores[-DUPLICATES:, -DUPLICATES:] = 1 - 1e-7
    scores += (1e-7 * torch.eye(N)).clamp(max=1)  # every query wins by a hair
    ids = torch.arange(N)
    own = Gallery(rows(N), rows(N), ids, ids, ids)
    for path in (
        lambda: cross_modal_recall(scores, ids, ids),
        lambda: evaluate(Table(scores), own, chunk_size=32),
        lambda: evaluate(Table(scores, scores), own, top_k=N, weight=0.5),
    ):
        with pytest.warns(UserWarning, match=r"40\.0% of the images and of 40\.0% of the captions"):
            path()


def test_exact_ties_and_few_queries_give_no_warning():
    ids = torch.arange(200)
    scores = torch.eye(200)
    scores[0, 1] = 1 - 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cross_modal_recall(torch.zeros(200, 200), ids, ids)["rsum"] == 0
        found = cross_modal_recall(scores, ids, ids)
    assert found["i2t_r1"] == 99.5
