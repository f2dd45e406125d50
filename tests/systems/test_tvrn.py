"""TVRN, small, on real batches of the built-in dataset."""

from functools import partial

import pytest
import torch
from related_shapes import RelatedShapes

from itmkit.data import Images, ImageTextData, ShapesDataset, Texts
from itmkit.losses import HingeCrossEntropyLoss
from itmkit.nn import BiGRU, RegionProjection, TimmGrid
from itmkit.systems import TVRN

DIM = 16


DATASETS = {
    "regions": RelatedShapes,
    "four": partial(RelatedShapes, four=True),
    "pixels": partial(ShapesDataset, image_size=32),
    "unrelated": partial(ShapesDataset, image_size=32, regions=True),
}
CASES = [
    ("regions", {}),
    ("regions", {"reasoning": "saf", "focal": "equal", "chunk_pairs": 5}),
    ("regions", {"focal": "global", "chunk_pairs": 1}),
    ("four", {"num_regions": 4, "focal": "prob"}),
    ("four", {"num_regions": 4, "reasoning": "saf"}),
    ("pixels", {}),
    ("pixels", {"reasoning": "saf", "chunk_pairs": 7}),
    ("pixels", {"num_regions": 16}),
]


def make_data(kind="regions", **options):
    options = {"batch_size": 6, "eval_batch_size": 5} | options
    dataset = partial(DATASETS[kind], length={"train": 12, "val": 10})
    return ImageTextData(dataset, val_split="val", **options)


def make_tvrn(kind="regions", **options):
    torch.manual_seed(0)
    image_encoder = (
        TimmGrid("test_byobnet", DIM, image_size=32, out_index=2, positions=True)
        if kind == "pixels"
        else RegionProjection(437, DIM, hidden_dim=DIM)
    )
    return TVRN(image_encoder, BiGRU(64, DIM, DIM), similarity_dim=8, **options)


def first_batch(kind="regions", **options):
    return next(iter(make_data(kind, **options).train_dataloader()))


@pytest.mark.parametrize(("kind", "options"), CASES)
def test_loss_naive_loop_reference(kind, options):
    """Every pair alone, without padding."""
    tvrn = make_tvrn(kind, **options).eval()
    batch = first_batch(kind)
    loss = tvrn.loss(batch)
    assert set(loss) == {"loss"}
    logits = torch.zeros(6, 6)
    for i in range(6):
        image = Images(batch.images.features[i : i + 1])
        if batch.images.mask is not None:
            real = batch.images.mask[i]
            image = Images(batch.images.features[i, real][None])
        if batch.images.relations is not None:
            count = image.features.shape[1]
            image.relations = batch.images.relations[i, :count, :count][None]
        encoded = tvrn.encode_image(image)
        for j in range(6):
            ids = batch.texts.ids[j][batch.texts.mask[j]][None]
            text = tvrn.encode_text(Texts(ids, torch.ones_like(ids, dtype=torch.bool)))
            logits[i, j] = tvrn.score(encoded, text)[0, 0]
    ids = batch.image_ids.tolist()
    positives = torch.tensor([[i == j for j in ids] for i in ids])
    expected = HingeCrossEntropyLoss(weight=0.5)(logits, positives)
    torch.testing.assert_close(loss["loss"], expected, atol=1e-5, rtol=1e-5)


def test_relations_of_an_image_matter_to_its_own_scores():
    tvrn = make_tvrn().eval()
    batch = first_batch()
    texts = tvrn.encode_text(batch.texts)
    before = tvrn.score(tvrn.encode_image(batch.images), texts)
    batch.images.relations[2] = 1 - batch.images.relations[2]
    change = (tvrn.score(tvrn.encode_image(batch.images), texts) - before).abs()
    others = change[[0, 1, 3, 4, 5]].max()
    assert others < 1e-6
    assert (change[2] > 10 * others).all()
    assert change[2].max() > 1e-5


def test_pixels_are_regions_each_related_to_itself_alone():
    tvrn = make_tvrn("pixels").eval()
    images = first_batch("pixels").images
    given = Images(images.features, relations=torch.eye(16).repeat(6, 1, 1))
    for name, value in tvrn.encode_image(images).items().items():
        assert value.equal(tvrn.encode_image(given).items()[name])


def test_score_is_a_logit():
    """It may leave [0, 1]; only the loss sees the sigmoid."""
    tvrn = make_tvrn().eval()
    batch = first_batch()
    images, texts = tvrn.encode_image(batch.images), tvrn.encode_text(batch.texts)
    before = tvrn.score(images, texts)
    tvrn.similarity.logit.bias.data += 40
    torch.testing.assert_close(tvrn.score(images, texts), before + 40)


def test_error_of_regions_without_relations():
    tvrn = make_tvrn()
    assert tvrn.loss(first_batch("unrelated", relation_threshold=0.2))["loss"].isfinite()
    batch = first_batch("unrelated")
    with pytest.raises(
        ValueError, match=r"images.relations is None; expected .*: set relation_threshold"
    ):
        tvrn.loss(batch)


def test_error_of_another_number_of_regions():
    with pytest.raises(ValueError, match="tokens has 8 tokens an item; expected 6 and none padded"):
        make_tvrn(num_regions=3).loss(first_batch("four"))


def test_error_of_several_captions_an_image():
    batch = first_batch(caption_views=2)
    with pytest.raises(ValueError, match=r"12 texts for 6 images; .*caption_views: 1"):
        make_tvrn().loss(batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reasoning": "gsr"}, "reasoning is 'gsr'; expected one of"),
        ({"focal": "hard"}, "focal is 'hard'; expected one of"),
        ({"chunk_pairs": 0}, "chunk_pairs is 0; expected 1 or more"),
        ({"num_regions": 0}, "num_regions is 0; expected 1 or more"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
    ],
)
def test_error_of_an_argument(options, message):
    with pytest.raises(ValueError, match=message):
        make_tvrn(**options)


def test_error_of_widths_that_disagree():
    with pytest.raises(ValueError, match=r"image_encoder.dim 16, text_encoder.dim 8; expected one"):
        TVRN(RegionProjection(437, DIM, hidden_dim=8), BiGRU(64, 8, 8))


def test_encodings_made_under_autocast_are_scored_outside_of_it():
    tvrn, batch = make_tvrn().eval(), first_batch()
    with torch.no_grad():
        exact = tvrn.score(tvrn.encode_image(batch.images), tvrn.encode_text(batch.texts))
        with torch.autocast("cpu", torch.bfloat16):
            images, texts = tvrn.encode_image(batch.images), tvrn.encode_text(batch.texts)
        torch.testing.assert_close(tvrn.score(images, texts), exact, atol=0.1, rtol=0)
