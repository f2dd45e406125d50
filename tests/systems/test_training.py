"""A few steps of training of every system, with every kind of images that it takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from quiet_trainer import quiet_trainer
from systems import ALL, SYSTEMS, dataset_of, make_batch, with_encoders

from itmkit.data import ImageTextData
from itmkit.testing.processes import loss_of

CASES = dict.fromkeys((name, image) for name, image, _ in with_encoders(SYSTEMS))


@pytest.mark.parametrize(("name", "image"), CASES)
def test_smoke_training_moves_every_part_and_logs_recall(
    tmp_path: Path, name: str, image: str | None
) -> None:
    torch.manual_seed(0)
    case = SYSTEMS[name].reading(image)
    system = case.make(image)
    if system.has_second_stage:
        system.rerank_top_k = 3
    data = ImageTextData(
        dataset_of(case, 12), batch_size=6, eval_batch_size=5, caption_views=case.views
    )
    before = {name: p.detach().clone() for name, p in system.named_parameters() if p.requires_grad}
    fit = quiet_trainer(tmp_path, val_check_interval=3)
    fit.fit(system, data)
    now = dict(system.named_parameters())
    assert [name for name, value in before.items() if now[name].equal(value)] == []
    assert {"train/loss", "val/rsum", "val/i2t_r1"} <= set(fit.callback_metrics)


@pytest.mark.parametrize(("name", "image"), [*CASES, *((n, None) for n in ALL if n not in SYSTEMS)])
def test_every_trained_parameter_gets_a_gradient(name: str, image: str | None) -> None:
    """DDP waits for all of them."""
    torch.manual_seed(0)
    case = ALL[name].reading(image)
    system = case.make(image)
    loss_of(system, make_batch(case))["loss"].backward()
    wrong = [n for n, p in system.named_parameters() if p.requires_grad != (p.grad is not None)]
    assert wrong == []
