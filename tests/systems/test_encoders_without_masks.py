"""Encoders that give no mask, as of captions of one length, fit every system that takes any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quiet_trainer import quiet_trainer
from systems import DIM, IMAGE, PLAIN, SYSTEMS, TEXT, dataset_of
from torch import Tensor, nn

from itmkit.data import ImageTextData
from itmkit.nn.contract import Tokens


class Maskless(nn.Module):
    """The tokens of an encoder, all taken for real ones."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.dim = DIM

    def forward(self, inputs: Tensor, mask: Tensor | None) -> Tokens:
        return Tokens(self.encoder(inputs, mask).tokens)


@pytest.mark.parametrize("name", [n for n, case in SYSTEMS.items() if case.encoders == PLAIN])
def test_trains_and_measures(tmp_path: Path, name: str) -> None:
    case = SYSTEMS[name]
    system = case.build(Maskless(IMAGE["regions"]()), Maskless(TEXT["gru"]()))
    if system.has_second_stage:
        system.rerank_top_k = 3
    data = ImageTextData(
        dataset_of(case, 12), batch_size=6, eval_batch_size=5, caption_views=case.views
    )
    fit = quiet_trainer(tmp_path, val_check_interval=2, max_steps=2)
    fit.fit(system, data)
    assert torch.isfinite(fit.callback_metrics["train/loss"])
    assert "val/rsum" in fit.callback_metrics
