"""A score depends on its pair alone: not on padding, the batch, the gallery or what was loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any, Literal

import pytest
import torch
from related_shapes import RelatedShapes
from systems import DIM, IMAGE, IMAGE_LEVELS, TEXT, TEXT_LEVELS
from torch import Tensor, nn
from torch.nn.functional import pad

from itmkit.data import Batch, Images, ImageTextData, ShapesDataset, Texts, collate_images
from itmkit.data.dataset import ImageTextDataset
from itmkit.nn import FusionEncoder, MatchingHead
from itmkit.retrieval import Encoding, Gallery, encode, evaluating
from itmkit.systems import DAIM, MATE, TVRN, Matcher


def fused(head: bool, image: nn.Module, text: nn.Module) -> MATE:
    fusion = FusionEncoder(DIM, num_layers=1, num_heads=2)
    return MATE(image, text, fusion, matching_head=MatchingHead(DIM) if head else None)


small_tvrn = partial(TVRN, similarity_dim=8, chunk_pairs=20)
SYSTEMS: dict[str, Callable[[nn.Module, nn.Module], Matcher]] = {
    "mate": partial(fused, False),
    "mate_matching_head": partial(fused, True),
    "daim": DAIM,
    "sgr": small_tvrn,
    "saf": partial(small_tvrn, reasoning="saf"),
    "equal": partial(small_tvrn, focal="equal"),
    "prob": partial(small_tvrn, focal="prob"),
    "global": partial(small_tvrn, focal="global"),
    "sgr_four": partial(small_tvrn, num_regions=4),
    "saf_four": partial(small_tvrn, num_regions=4, reasoning="saf"),
}
CASES = [(s, i, t) for s in ("mate", "daim", "sgr", "saf") for i in IMAGE for t in TEXT]
CASES += [("daim", i, t) for i in IMAGE_LEVELS for t in TEXT_LEVELS]
CASES += [(s, i, "gru") for s in ("equal", "prob", "global", "mate_matching_head") for i in IMAGE]
CASES += [(s, "four_regions", "gru") for s in ("sgr_four", "saf_four")]


@cache
def make_data(kind: Literal["regions", "four", "pixels"], eval_batch_size: int) -> ImageTextData:
    dataset: Callable[[str], ImageTextDataset] = (
        partial(ShapesDataset, length=6, image_size=32)
        if kind == "pixels"
        else partial(RelatedShapes, length=6, four=kind == "four")
    )
    return ImageTextData(dataset, eval_batch_size=eval_batch_size, batch_size=5, train_split="val")


def make_matcher(system: str, image: str, text: str) -> Matcher:
    torch.manual_seed(0)
    images = IMAGE | IMAGE_LEVELS | {"four_regions": IMAGE["regions"]}
    matcher = SYSTEMS[system](images[image](), (TEXT | TEXT_LEVELS)[text]())
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
def test_a_score_depends_on_its_pair_alone(system: str, image: str, text: str) -> None:
    matcher = make_matcher(system, image, text)
    kinds: dict[str, Any] = {"grid": "pixels", "stages": "pixels", "four_regions": "four"}
    kind = kinds.get(image, "regions")
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
