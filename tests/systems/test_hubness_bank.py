"""Systems whose scores are corrected for hubs, with a bank from the training split."""

from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback
from quiet_trainer import quiet_trainer
from systems import ALL, make_batch

from itmkit.checks import InputError
from itmkit.data import CaptionNoise, ImageTextData, ShapesDataset
from itmkit.data.images import ImageSource, Regions
from itmkit.nn import BiGRU, CrossAttentionFusion, HubnessCorrection, RegionProjection
from itmkit.retrieval import encode
from itmkit.systems import DAIM, MATE
from itmkit.systems.hubness_bank import fill_bank
from itmkit.training import LastCheckpoint

DIM = 8


def data(**options) -> ImageTextData:
    dataset = partial(ShapesDataset, length={"train": 24, "val": 6}, regions=True)
    options = {"batch_size": 6, "eval_batch_size": 5} | options
    return ImageTextData(dataset, relation_threshold=0.2, **options)


def mate(correction: HubnessCorrection | None, **options) -> MATE:
    torch.manual_seed(0)
    encoders = RegionProjection(437, DIM, hidden_dim=DIM), BiGRU(64, DIM, DIM)
    options = {"views": 1, "distillation_weight": 0.0, "warmup": 0} | options
    return MATE(*encoders, hubness_correction=correction, **options)


def test_a_fit_fills_the_bank_and_its_checkpoint_has_it(tmp_path):
    model = mate(HubnessCorrection(9, neighbours=2))
    trainer = quiet_trainer(tmp_path, val_check_interval=3)
    trainer.fit(model, data())
    bank = model.hubness_correction
    own = encode(model, data().evaluation_dataloader("train"))
    rows = [number * 24 // 9 for number in range(9)]
    torch.testing.assert_close(bank.image_bank, model.uncorrected(own.images.vector[rows]))
    first = [int((own.text_image_ids == own.image_ids[row]).int().argmax()) for row in rows]
    torch.testing.assert_close(bank.text_bank, model.uncorrected(own.texts.vector[first]))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = mate(HubnessCorrection(9, neighbours=2))
    again.load_state_dict(torch.load(tmp_path / "model.ckpt")["state_dict"])
    torch.testing.assert_close(again.hubness_correction.centres, bank.centres)
    assert bank.centres.abs().min() > 0


def test_a_checkpoint_is_measured_without_its_correction(tmp_path):
    model, plain = mate(HubnessCorrection(9, neighbours=2)), mate(None)
    trainer = quiet_trainer(tmp_path)
    trainer.fit(model, data())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    trainer.validate(plain, data(), ckpt_path=tmp_path / "model.ckpt", verbose=False)
    batch = next(iter(data().val_dataloader()))
    found = encode(plain, [batch]).images.vector
    torch.testing.assert_close(found, model.uncorrected(encode(model, [batch]).images.vector))
    other = mate(HubnessCorrection(8, neighbours=2))
    with pytest.raises(InputError, match=r"does not fit MATE: hubness_correction\.image_bank"):
        trainer.validate(other, data(), ckpt_path=tmp_path / "model.ckpt", verbose=False)


def test_a_correction_changes_the_search_and_nothing_that_is_trained():
    batch = next(iter(data().train_dataloader()))
    losses, scores, pair_scores = [], [], []
    for correction in (None, HubnessCorrection(9, neighbours=2)):
        torch.manual_seed(0)
        fusion = CrossAttentionFusion(DIM, num_heads=2, dropout=0.0)
        model = mate(correction, fusion=fusion).train()
        if correction is not None:
            fill_bank(model, correction, data())
        torch.manual_seed(1)
        losses.append(model.loss(batch))
        model.eval()
        images, texts = model.encode_image(batch.images), model.encode_text(batch.texts)
        scores.append(model.score(images, texts))
        pair_scores.append(model.rerank(images, texts, torch.tensor([[0, 0], [3, 1]])))
    torch.testing.assert_close(*pair_scores)
    assert not torch.allclose(scores[0], 1.5 * scores[1], atol=1e-4)
    for name in ("triplet", "hect"):
        torch.testing.assert_close(losses[0][name], losses[1][name])


@pytest.mark.parametrize("options", [{"val_split": None}, {}], ids=["no split", "no batches"])
def test_a_fit_without_validation_fills_the_bank_before_its_checkpoint(tmp_path, options):
    model, last = mate(HubnessCorrection(9, neighbours=2)), LastCheckpoint(dirpath=tmp_path)
    given = {"limit_val_batches": len(options), "callbacks": [last], "enable_checkpointing": True}
    quiet_trainer(tmp_path, **given).fit(model, data(**options))
    saved = torch.load(last.path)["state_dict"]
    assert saved["hubness_correction.centres"].abs().min() > 0
    refilled = mate(HubnessCorrection(9, neighbours=2))
    refilled.load_state_dict(saved)
    fill_bank(refilled, refilled.hubness_correction, data())
    torch.testing.assert_close(refilled.state_dict(), saved)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_the_bank_is_encoded_as_a_validation_is(tmp_path, precision):
    model = mate(HubnessCorrection(9, neighbours=2))
    trainer = quiet_trainer(tmp_path, val_check_interval=3, precision=precision)
    trainer.fit(model, data())
    bank, plugin = model.hubness_correction, trainer.precision_plugin
    with plugin.forward_context():
        loader = data().evaluation_dataloader("train", rows=[0, 2])
        own = encode(model, [plugin.convert_input(batch) for batch in loader])
    found = model.uncorrected(own.images.vector)
    torch.testing.assert_close(bank.image_bank[:2], found.to(bank.image_bank))


class Gaps(ShapesDataset):
    """Images 1, 4, 7 and 10 have no captions."""

    def __init__(self, split: str, **options) -> None:
        super().__init__(split, **options)
        kept = (self.caption_images % 3 != 1).nonzero()[:, 0]
        self.captions = [self.captions[row] for row in kept.tolist()]
        self.caption_images = self.caption_images[kept]

    def captions_of(self, row: int) -> list[int]:
        return (self.caption_images == row).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("size", [4, 30])
def test_the_bank_is_of_what_is_trained_on(tmp_path, size):
    """No image without captions, nothing excluded, and no more than there is."""
    make = partial(Gaps, length=12, regions=True)
    train = make("train")
    first = train.captions_of(3)[0]
    rows = [f"{train.names[0]},", f'{train.names[3]},"{train.captions[first]}"']
    (tmp_path / "list.csv").write_text("\n".join(["image,caption", *rows]) + "\n")
    own = ImageTextData(make, batch_size=4, eval_batch_size=1, exclude=tmp_path / "list.csv")
    model = mate(HubnessCorrection(size, neighbours=2))
    fill_bank(model, model.hubness_correction, own)
    gallery = encode(model, own.evaluation_dataloader("train"))
    kept = [2, 3, 5, 6, 8, 9, 11]
    images = [kept[number * 7 // 4] for number in range(4)] if size == 4 else kept
    captions = [train.captions_of(row)[row == 3] for row in images]
    for bank, found in (
        (model.hubness_correction.image_bank, gallery.images.vector[images]),
        (model.hubness_correction.text_bank, gallery.texts.vector[captions]),
    ):
        torch.testing.assert_close(bank[: len(images)], model.uncorrected(found))
        assert not bank[len(images) :].any()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_model_is_trained_to_the_same_weights_with_a_correction_and_without(tmp_path, workers):
    """Whatever is drawn at random in training: captions, dropped tokens, dropout, views."""
    options = {"caption_views": 2, "noise": CaptionNoise(), "num_workers": workers}
    states = []
    for correction in (None, HubnessCorrection(9, neighbours=2)):
        torch.manual_seed(0)
        fusion = CrossAttentionFusion(DIM, num_heads=2, dropout=0.3)
        parts = {"fusion": fusion, "optimizer": partial(torch.optim.SGD, lr=0.1)}
        model = mate(correction, views=2, distillation_weight=1.0, **parts)
        quiet_trainer(tmp_path, val_check_interval=1).fit(model, data(**options))
        states.append({**model.state_dict(), "random": torch.get_rng_state()})
    bank = {name: states[1].pop(name) for name in set(states[1]) - set(states[0])}
    assert len(bank) == 3
    assert all(value.any() for value in bank.values())
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)


def test_every_fit_fills_the_bank_once_for_its_weights_and_an_evaluation_leaves_it(tmp_path):
    model = mate(HubnessCorrection(9, neighbours=2))
    bank = model.hubness_correction
    for _ in range(2):  # both end at the same step
        with patch.object(bank, "fill", wraps=bank.fill) as fill:
            quiet_trainer(tmp_path, val_check_interval=3).fit(model, data())
        assert fill.call_count == 1
        before = {name: value.clone() for name, value in bank.named_buffers()}
        fill_bank(model, bank, data())
        torch.testing.assert_close(dict(bank.named_buffers()), before)
    bank.centres.zero_()
    trainer = quiet_trainer(tmp_path)
    trainer.validate(model, data(), verbose=False)
    trainer.test(model, data(test_split="val"), verbose=False)
    assert not bank.centres.any()


def test_the_bank_is_of_the_running_statistics_of_a_batch_that_is_accumulated(tmp_path):
    model, same = mate(HubnessCorrection(9, neighbours=2)), []

    def compare(*_) -> None:
        before = model.hubness_correction.image_bank.clone()
        fill_bank(model, model.hubness_correction, data())
        same.append(before.equal(model.hubness_correction.image_bank))

    options = {"accumulate_grad_batches": 3, "val_check_interval": 1, "limit_train_batches": 3}
    callback = LambdaCallback(on_validation_end=compare)
    quiet_trainer(tmp_path, max_epochs=1, callbacks=[callback], **options).fit(model, data())
    assert same == [True] * 3


def test_the_bank_is_of_averaged_weights_where_these_are_validated(tmp_path):
    model = mate(HubnessCorrection(9, neighbours=2), optimizer=partial(torch.optim.SGD, lr=0.5))
    averaging = EMAWeightAveraging(decay=0.5)
    trainer = quiet_trainer(tmp_path, val_check_interval=3, callbacks=[averaging])
    trainer.fit(model, data())  # whose end copies the average
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    saved = torch.load(tmp_path / "model.ckpt", weights_only=True)["state_dict"]
    refilled = mate(HubnessCorrection(9, neighbours=2))
    refilled.load_state_dict(saved)
    fill_bank(refilled, refilled.hubness_correction, data())
    for state in (saved, model.state_dict()):
        torch.testing.assert_close(state, refilled.state_dict())


class Drawn(ShapesDataset):
    """Images that are drawn at random, in an evaluation too."""

    augments = True

    def image(self, row: int) -> Regions:
        regions = super().image(row)
        return replace(regions, features=regions.features + torch.rand(437))


def test_the_bank_of_drawn_images_is_always_the_same_and_training_draws_as_without():
    own = ImageTextData(partial(Drawn, length=12, regions=True), batch_size=4)
    model = mate(HubnessCorrection(9, neighbours=2))
    banks, before = [], torch.get_rng_state()
    for _ in range(2):
        fill_bank(model, model.hubness_correction, own)
        banks.append(model.hubness_correction.image_bank.clone())
    torch.testing.assert_close(*banks, atol=0, rtol=0)
    assert torch.get_rng_state().equal(before)


class Augmented(ImageSource):
    """The images of a dataset, changed at random in training."""

    augments = True

    def __init__(self, dataset: ShapesDataset) -> None:
        self.names, self.plain = dataset.names, dataset.image

    def image(self, row: int) -> Regions:
        regions = self.plain(row)
        return replace(regions, features=regions.features + self.augments * torch.rand(437))


class AugmentedShapes(ShapesDataset):
    source = property(Augmented)


def test_the_bank_is_of_images_without_augmentation():
    banks, model = [], mate(HubnessCorrection(9, neighbours=2))
    for dataset in (ShapesDataset, AugmentedShapes):
        own = ImageTextData(partial(dataset, length=12, regions=True), batch_size=4)
        fill_bank(model, model.hubness_correction, own)
        banks.append(model.hubness_correction.image_bank.clone())
    torch.testing.assert_close(*banks)


@pytest.mark.parametrize("name", ["mate_groups", "tvrn_branch", "dual_corrected"])
def test_both_sides_of_a_system_are_corrected(name):
    model, batch = ALL[name].make().eval(), make_batch(ALL[name])
    correction, encoded = model.hubness_correction, []
    for one in (correction, None):
        model.hubness_correction = one
        encoded.append((model.encode_image(batch.images), model.encode_text(batch.texts)))
    (image, text), (plain_image, plain_text) = encoded
    torch.testing.assert_close(image.vector, correction.image(plain_image.vector))
    torch.testing.assert_close(text.vector, correction.text(plain_text.vector))


def test_errors(tmp_path):
    with pytest.raises(InputError, match=r"hubness_correction.* global_branch"):
        DAIM(
            RegionProjection(437, DIM, hidden_dim=DIM),
            BiGRU(64, DIM, DIM),
            hubness_correction=HubnessCorrection(),
        )
    model = mate(HubnessCorrection())
    own = data()
    own.setup("fit")
    loaders = own.train_dataloader(), own.val_dataloader()
    trainer = quiet_trainer(tmp_path)
    with pytest.raises(InputError, match="whose training split hubness_correction reads again"):
        trainer.fit(model, *loaders)
    assert trainer.global_step == 0
