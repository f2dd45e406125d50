"""A score depends on its pair alone: not on padding, the batch, the gallery or what was loaded."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Literal

import pytest
import torch
from systems import ALL, SYSTEMS, VARIANTS, Case, dataset_of, with_encoders
from torch import Tensor
from torch.nn.functional import pad

from itmkit.data import Batch, Images, ImageTextData, Texts, collate_images
from itmkit.retrieval import Encoding, Gallery, encode, evaluating
from itmkit.systems import Matcher

CASES = with_encoders(SYSTEMS) + [(name, None, None) for name in VARIANTS]


@cache
def make_data(kind: Literal["regions", "four", "pixels"], eval_batch_size: int) -> ImageTextData:
    dataset = dataset_of(Case(Matcher, images=kind), 6)
    return ImageTextData(dataset, eval_batch_size=eval_batch_size, batch_size=5, train_split="val")


def make_matcher(system: str, image: str | None, text: str | None) -> Matcher:
    torch.manual_seed(0)
    matcher = ALL[system].make(image, text)
    for name, buffer in matcher.named_buffers():  # as if trained, not 0 and 1
        if name.endswith("running_mean"):
            buffer.normal_(std=0.1)
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    return matcher.eval()


def table(matcher: Matcher, images: Encoding, texts: Encoding) -> Tensor:
    """Scores of all pairs ``(n, m, stages)``, of the second stage too where there is one."""
    with evaluating(matcher):
        scores = [matcher.score(images, texts)]
        if matcher.has_second_stage:
            pairs = torch.cartesian_prod(torch.arange(len(images)), torch.arange(len(texts)))
            scores.append(matcher.rerank(images, texts, pairs).view(scores[0].shape))
    return torch.stack(scores, dim=2)


def by_id(matcher: Matcher, gallery: Gallery) -> Tensor:
    """The table of a gallery, in the order of the dataset."""
    scores = table(matcher, gallery.images, gallery.texts)
    assert len(scores) == 6
    assert scores.shape[1] == 30
    return scores[gallery.image_ids.argsort()][:, gallery.text_ids.argsort()]


def padded(batch: Batch, regions: int, words: int) -> Batch:
    """The same with more padding, and nonsense in it."""
    images, texts = batch.images, batch.texts
    if images.features.ndim == 3 and regions:
        mask = images.mask
        if mask is None:
            mask = torch.ones(images.features.shape[:2], dtype=torch.bool)
        assert images.relations is not None
        mask = pad(mask, (0, regions))
        real = mask[:, :, None] & mask[:, None, :]
        images = Images(
            pad(images.features, (0, 0, 0, regions)).masked_fill(~mask[:, :, None], 7.0),
            mask,
            relations=pad(images.relations, (0, regions, 0, regions)).masked_fill(~real, 0.7),
        )
    mask = pad(texts.mask, (0, words))
    texts = Texts(pad(texts.ids, (0, words)).masked_fill(~mask, 9), mask)
    return Batch(images, texts, batch.image_ids, batch.text_image_ids, batch.text_ids)


def alone(matcher: Matcher, data: ImageTextData, row: int, caption: int) -> Tensor:
    """Scores of an image and a caption that were never in a batch."""
    dataset = data.split("val")
    with evaluating(matcher):
        image = matcher.encode_image(collate_images([dataset.image(row)]))
        ids = torch.tensor([data.tokenizer.encode(dataset.captions[caption]).ids])
        text = matcher.encode_text(Texts(ids, torch.ones_like(ids, dtype=torch.bool)))
    return table(matcher, image, text)[0, 0]


@pytest.mark.parametrize(("system", "image", "text"), CASES)
def test_a_score_depends_on_its_pair_alone(
    system: str, image: str | None, text: str | None
) -> None:
    matcher = make_matcher(system, image, text)
    kind = ALL[system].reading(image).images
    data = make_data(kind, 6)
    (batch,) = data.val_dataloader()
    together = encode(matcher, [batch])
    expected = by_id(matcher, together)
    assert (expected.flatten(0, 1).std(0) > 1e-3).all()  # else the rest would say little

    def same(found: Tensor, wanted: Tensor = expected) -> None:
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)

    # other neighbours, and encodings joined from parts of different padding
    small = list(make_data(kind, 2).val_dataloader())
    batches: list[Iterable[Batch]] = [small, small[::-1]]
    # images beside one of their captions, in any order
    batches.append(data.train_dataloader())
    # other padding, of all and of some
    more = 0 if kind == "four" else 3
    batches.append([padded(batch, more, 5)])
    batches.append([padded(part, k * more, 2 * k) for k, part in enumerate(small)])
    for loaded in batches:
        same(by_id(matcher, encode(matcher, loaded)))
    # some of the images with some of the captions
    rows, columns = torch.tensor([4, 1]), torch.tensor([22, 3, 29])
    same(
        table(matcher, together.images[rows], together.texts[columns]),
        expected[rows][:, columns],
    )
    for row, caption in [(0, 0), (3, 17), (5, 2)]:
        same(alone(matcher, data, row, caption), expected[row, caption])
