"""DAIM, small, on real batches of the built-in dataset."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from quiet_trainer import quiet_trainer
from systems import BERT, DIM

from itmkit.callbacks import FreezeUntil
from itmkit.checks import InputError
from itmkit.data import ImageTextData, ShapesDataset
from itmkit.losses import (
    AdaptiveMarginTripletLoss,
    HECTLoss,
    HingeCrossEntropyLoss,
    TripletLoss,
)
from itmkit.nn import (
    BagOfWords,
    BiGRU,
    CrossAttentionSimilarity,
    FeatureDiscriminability,
    RegionProjection,
    SharedLevels,
    TimmGrid,
    TimmLevels,
    TransformerLevels,
)
from itmkit.systems import DAIM

SPREAD = FeatureDiscriminability(scale=0.1)
IMAGE_ENCODERS = {
    "regions": partial(RegionProjection, 437, DIM, hidden_dim=DIM),
    "region_levels": lambda: SharedLevels(RegionProjection(437, 8, hidden_dim=8), 2, DIM),
    "grid": partial(TimmGrid, "test_byobnet", DIM, image_size=32, out_index=2),
    "stages": partial(
        TimmLevels,
        "test_byobnet",
        DIM,
        out_indices=(1, 2),
        image_size=32,
        positions=True,
        level_discriminability=SPREAD,
    ),
    "three_stages": partial(
        TimmLevels,
        "test_vit",
        DIM,
        out_indices=(0, 2, 4),
        image_size=32,
        block_discriminability=SPREAD,
    ),
}
TEXT_ENCODERS = {
    "words": partial(BagOfWords, 64, DIM),
    "gru": partial(BiGRU, 64, DIM, DIM),
    "gru_levels": lambda: SharedLevels(BiGRU(64, 8, 8), 2, DIM),
    "bert_levels": partial(
        TransformerLevels,
        config=BERT,
        layers=(0, 1, 2),
        dim=DIM,
        block_discriminability=SPREAD,
        level_discriminability=SPREAD,
    ),
}
ENCODERS = [
    ("regions", "gru"),
    ("grid", "words"),
    ("region_levels", "gru_levels"),
    ("stages", "gru_levels"),
    ("three_stages", "bert_levels"),
]


def make_data(image="stages", **options):
    options = {"batch_size": 6, "eval_batch_size": 5} | options
    regions = image.startswith("region")
    dataset = partial(
        ShapesDataset, length={"train": 12, "val": 10}, image_size=32, regions=regions
    )
    return ImageTextData(dataset, val_split="val", **options)


def make_daim(image="stages", text="gru_levels", **options):
    torch.manual_seed(0)
    options = {"loss": AdaptiveMarginTripletLoss(min_rows=2)} | options
    return DAIM(IMAGE_ENCODERS[image](), TEXT_ENCODERS[text](), **options)


def first_batch(image="stages", **options):
    return next(iter(make_data(image, **options).train_dataloader()))


def test_margin_is_logged(tmp_path):
    daim = make_daim("regions", "gru")
    fit = quiet_trainer(tmp_path, limit_val_batches=0)
    fit.fit(daim, make_data("regions"))
    assert fit.callback_metrics["train/margin"] == daim.score_loss.margin.float()


@pytest.mark.parametrize("warmup", [0, 1])
@pytest.mark.parametrize(("image", "text"), ENCODERS)
def test_loss_naive_loop_reference(image, text, warmup):
    daim = make_daim(image, text, warmup=warmup).eval()
    daim.score_loss.train()
    batch = first_batch(image)
    loss = daim.loss(batch)
    assert set(loss) == {"loss"}
    similarity = CrossAttentionSimilarity()
    images = daim.image_encoder(batch.images.features, batch.images.mask)
    texts = daim.text_encoder(batch.texts.ids, batch.texts.mask)
    levels = [(images, texts)]
    if isinstance(images, list):
        levels = list(zip(images, texts, strict=True))
    assert len(levels) == daim.levels
    scores = torch.zeros(6, 6)
    for (regions, region_mask), (words, word_mask) in levels:
        for i in range(6):
            found = regions[i] if region_mask is None else regions[i][region_mask[i]]
            for j in range(6):
                scores[i, j] += similarity(found[None], words[j][word_mask[j]][None])[0, 0]
    ids = batch.image_ids.tolist()
    positives = torch.tensor([[i == j for j in ids] for i in ids])
    reference = AdaptiveMarginTripletLoss(min_rows=2, negatives="all" if warmup else "hardest")
    torch.testing.assert_close(loss["loss"], reference(scores, positives), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(daim.score_loss.margin, reference.margin, atol=1e-5, rtol=1e-5)


def test_hinge_counts_all_negatives_while_warming_up_only(tmp_path):
    seen = []

    class Watch(AdaptiveMarginTripletLoss):
        def forward(self, scores, positives=None):
            seen.append(self.negatives)
            return super().forward(scores, positives)

    daim = make_daim(loss=Watch(), warmup=2, warmup_unit="step")
    quiet_trainer(tmp_path, max_steps=4, limit_val_batches=0).fit(daim, make_data())
    assert seen == ["all", "all", "hardest", "hardest"]


def test_negatives_are_those_of_the_loss_but_for_the_warmup(tmp_path):
    for warmup in (0, 1):
        loss = AdaptiveMarginTripletLoss(min_rows=2, negatives="all")
        daim = make_daim(loss=loss, warmup=warmup, warmup_unit="step")
        quiet_trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(daim, make_data())
        assert loss.negatives == "all"


@pytest.mark.parametrize("loss", [TripletLoss(), HingeCrossEntropyLoss()])
def test_any_loss_of_scores(tmp_path, loss):
    daim = make_daim("regions", "words", loss=loss)
    fit = quiet_trainer(tmp_path, limit_val_batches=0)
    fit.fit(daim, make_data("regions"))
    batch = first_batch("regions")
    scores, positives = daim.batch_scores(batch)
    torch.testing.assert_close(daim.loss(batch)["loss"], loss(scores, positives))
    assert "train/loss" in fit.callback_metrics
    assert "train/margin" not in fit.callback_metrics


def test_a_warmup_of_a_loss_without_a_choice_of_negatives_is_a_warning():
    with pytest.warns(UserWarning, match="warmup is 2, without effect: .*HingeCrossEntropyLoss"):
        make_daim(loss=HingeCrossEntropyLoss(), warmup=2)


def test_error_of_a_loss_of_vectors():
    with pytest.raises(InputError, match=r"loss is a HECTLoss.* expected a loss of \(scores, pos"):
        make_daim(loss=HECTLoss())


def test_a_resumed_run_goes_on_with_its_margin(tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            margins.append(pl_module.score_loss.margin.item())
            if trainer.global_step == 5:
                trainer.save_checkpoint(tmp_path / "five.ckpt")

    def fit(**options):
        daim = make_daim("regions", "gru", optimizer=partial(torch.optim.AdamW, lr=5e-3))
        trainer = quiet_trainer(tmp_path, max_steps=8, limit_val_batches=0, callbacks=[Save()])
        trainer.fit(daim, make_data("regions", batch_size=20), **options)
        return daim.state_dict()

    margins = []
    whole = fit()
    assert len({margins[0], margins[4], margins[7]}) == 3
    resumed = fit(ckpt_path=tmp_path / "five.ckpt")
    assert margins[8:] == margins[5:8]
    for name, value in whole.items():
        assert value.equal(resumed[name]), name


def test_backbone_is_frozen_in_the_first_epoch(tmp_path):
    class Watch(Callback):
        def __init__(self):
            self.states = []

        def on_train_epoch_start(self, trainer, pl_module):
            self.states.append({k: v.clone() for k, v in pl_module.state_dict().items()})

        on_fit_end = on_train_epoch_start

    watch = Watch()
    # Three batches: a residual block starts as zero and has no gradient in the first.
    freeze = FreezeUntil(["image_encoder.backbone"], until=1)
    limits = {"max_steps": -1, "max_epochs": 2, "limit_train_batches": 3, "limit_val_batches": 0}
    trainer = quiet_trainer(tmp_path, callbacks=[watch, freeze], **limits)
    daim = make_daim()
    trainer.fit(daim, make_data())
    start, first, second = watch.states
    for name, parameter in daim.named_parameters():
        if parameter.requires_grad:
            in_backbone = name.startswith("image_encoder.backbone.")
            assert start[name].equal(first[name]) == in_backbone, name
            assert not first[name].equal(second[name]), name


@pytest.mark.parametrize(
    ("image", "text", "options", "message"),
    [
        ("stages", "gru", {}, "image_encoder.levels 2, text_encoder.levels 1; expected one number"),
        (
            "grid",
            "gru_levels",
            {},
            "image_encoder.levels 1, text_encoder.levels 2; expected one number",
        ),
        (
            "stages",
            "bert_levels",
            {},
            "image_encoder.levels 2, text_encoder.levels 3; expected one number",
        ),
        ("stages", "gru_levels", {"warmup": -1}, "warmup is -1; expected 0 or more"),
    ],
)
def test_error_of_an_argument(image, text, options, message):
    with pytest.raises(ValueError, match=message):
        make_daim(image, text, **options)


def test_error_of_widths_that_disagree():
    with pytest.raises(ValueError, match=r"image_encoder.dim 16, text_encoder.dim 8; expected one"):
        DAIM(IMAGE_ENCODERS["regions"](), BiGRU(64, 8, 8))


def test_error_of_several_captions_an_image():
    batch = first_batch(caption_views=2)
    with pytest.raises(ValueError, match=r"12 texts for 6 images; .*caption_views: 1"):
        make_daim().loss(batch)


def test_one_image_in_a_batch_has_a_zero_loss_with_a_graph():
    loss = make_daim("regions", "gru").loss(first_batch("regions", batch_size=1))["loss"]
    loss.backward()
    assert loss == 0
