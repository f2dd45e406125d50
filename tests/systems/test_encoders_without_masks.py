"""Encoders that give no mask, as of captions of one length, fit every system."""

from functools import partial

import pytest
import torch
from quiet_trainer import quiet_trainer
from related_shapes import RelatedShapes
from torch import nn

from itmkit.data import ImageTextData, ShapesDataset
from itmkit.losses import AdaptiveMarginTripletLoss
from itmkit.nn import BiGRU, FusionEncoder, RegionProjection
from itmkit.nn.contract import Tokens
from itmkit.systems import DAIM, MATE, TVRN

DIM = 16


class Maskless(nn.Module):
    """The tokens of an encoder, all taken for real ones."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.dim = DIM

    def forward(self, inputs, mask):
        return Tokens(self.encoder(inputs, mask).tokens)


SYSTEMS = {
    "MATE": lambda *encoders: MATE(
        *encoders, FusionEncoder(DIM, num_layers=1, num_heads=2), rerank_top_k=3, queue_size=8
    ),
    "DAIM": lambda *encoders: DAIM(*encoders, loss=AdaptiveMarginTripletLoss(min_rows=2)),
    "TVRN": partial(TVRN, similarity_dim=8),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_trains_and_measures(tmp_path, name):
    encoders = (
        Maskless(RegionProjection(437, DIM, hidden_dim=DIM)),
        Maskless(BiGRU(64, DIM, DIM)),
    )
    system = SYSTEMS[name](*encoders)
    dataset = RelatedShapes if name == "TVRN" else partial(ShapesDataset, regions=True)
    data = ImageTextData(
        partial(dataset, length={"train": 12, "val": 10}),
        batch_size=6,
        eval_batch_size=5,
        caption_views=2 if name == "MATE" else 1,
    )
    fit = quiet_trainer(tmp_path, val_check_interval=3)
    fit.fit(system, data)
    assert torch.isfinite(fit.callback_metrics["train/loss"])
    assert "val/rsum" in fit.callback_metrics
