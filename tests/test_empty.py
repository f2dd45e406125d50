"""No images, or no captions: an empty result where there is one, else one clear error."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from score_table import Table, gallery, rows
from systems import IMAGE, IMAGE_LEVELS, SYSTEMS, TEXT, TEXT_LEVELS, make_batch

from itmkit.checks import InputError
from itmkit.data import Batch
from itmkit.retrieval import (
    Ensemble,
    Gallery,
    best_captions,
    best_images,
    encode,
    evaluate,
    pair_scores,
    score_matrix,
)
from itmkit.systems import Matcher

NONE = torch.zeros(0, dtype=torch.int64)


def without_texts(batch: Batch) -> Batch:
    texts = batch.texts.rows(slice(0, 0))
    return replace(batch, texts=texts, text_image_ids=NONE, text_ids=NONE)


def without_images(batch: Batch) -> Batch:
    return replace(batch, images=batch.images.rows(slice(0, 0)), image_ids=NONE)


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> tuple[Matcher, Batch]:
    case = SYSTEMS[request.param]
    return case.make(), make_batch(case)


def test_a_system_says_that_there_is_nothing_to_encode(system: tuple[Matcher, Batch]) -> None:
    model, batch = system
    empty = without_texts(without_images(batch))
    with pytest.raises(InputError, match="images is empty; expected one or more"):
        model.encode_image(empty.images)
    with pytest.raises(InputError, match="texts is empty; expected one or more"):
        model.encode_text(empty.texts)
    for one in (empty, without_texts(batch), without_images(batch)):
        with pytest.raises(InputError):
            model.loss(one)


def test_a_system_scores_nothing(system: tuple[Matcher, Batch]) -> None:
    model, batch = system
    found = encode(model, [without_texts(batch), without_images(batch)])
    n, m = len(found.images), len(found.texts)
    assert (n, m) == (len(batch.image_ids.unique()), len(batch.text_ids.unique()))
    for images, texts in ((0, m), (n, 0), (0, 0)):
        scores = score_matrix(model, found.images[:images], found.texts[:texts])
        assert scores.shape == (images, texts)
    assert pair_scores(model, found.images, found.texts, torch.zeros(0, 2).long()).shape == (0,)


@pytest.mark.parametrize("name", {**TEXT, **TEXT_LEVELS})
@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_text_encoders(name: str, shape: tuple[int, int]) -> None:
    encoder = {**TEXT, **TEXT_LEVELS}[name]()
    with pytest.raises(InputError, match=r"ids has the shape \(., .\); expected 1 or more in each"):
        encoder(torch.zeros(shape, dtype=torch.int64), torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("name", ["grid", "stages"])
def test_encoders_of_pixels(name: str) -> None:
    encoder = {**IMAGE, **IMAGE_LEVELS}[name]()
    with pytest.raises(InputError, match=r"features has the shape \(0, 3, 32, 32\); expected 1 or"):
        encoder(torch.zeros(0, 3, 32, 32))


@pytest.mark.parametrize("top_k", [0, 2])
@pytest.mark.parametrize(("images", "texts"), [(0, 5), (3, 0), (0, 0)])
def test_searches_find_nothing(images: int, texts: int, top_k: int) -> None:
    model = Table(torch.rand(3, 5), torch.rand(3, 5), top_k=top_k, weight=0.5)
    for (scores, found), shape in (
        (best_captions(model, rows(images), rows(texts), 2), (images, min(texts, 2))),
        (best_images(model, rows(texts), rows(images), 2), (texts, min(images, 2))),
    ):
        assert scores.shape == found.shape == shape
        assert (scores.dtype, found.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(("images", "texts"), [(0, 5), (3, 0), (0, 0)])
def test_a_gallery_without_images_or_captions_has_no_recall(images: int, texts: int) -> None:
    model, whole = Table(torch.rand(3, 5)), gallery(torch.arange(5) % 3, 3)
    part = Gallery.cat([whole.part(torch.arange(images), torch.arange(texts))])
    for one, own in ((model, part), (Ensemble([model] * 2, [part] * 2), part)):
        with pytest.raises(InputError, match=f"there are {images} images and {texts} captions; ex"):
            evaluate(one, own)


def test_a_batch_has_an_id_for_each_image_and_caption() -> None:
    batch = make_batch(SYSTEMS["daim"])
    for name in ("image_ids", "text_image_ids", "text_ids"):
        with pytest.raises(InputError, match=rf"{name} has the shape \(3,\); expected \(7,\)"):
            replace(batch, **{name: torch.arange(3)})
