"""Systems whose scores are corrected for hubs, with a bank from the training split."""

from functools import partial

import pytest
import torch
from quiet_trainer import quiet_trainer

from itmkit.checks import InputError
from itmkit.data import ImageTextData, ShapesDataset
from itmkit.nn import BiGRU, CrossAttentionFusion, HubnessCorrection, RegionProjection
from itmkit.retrieval import encode
from itmkit.systems import DAIM, MATE
from itmkit.systems.hubness_bank import fill_bank

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


def test_errors():
    with pytest.raises(InputError, match=r"hubness_correction.* global_branch"):
        DAIM(
            RegionProjection(437, DIM, hidden_dim=DIM),
            BiGRU(64, DIM, DIM),
            hubness_correction=HubnessCorrection(),
        )
    model = mate(correction := HubnessCorrection())
    with pytest.raises(InputError, match="hubness_correction reads the training split"):
        fill_bank(model, correction, None)
