"""Configurations of published systems hold the published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml

from itmkit.configs import config_path
from itmkit.losses import HingeCrossEntropyLoss, MomentumDistillationLoss
from itmkit.losses.functional import hinge_cross_entropy_loss
from itmkit.nn import BiGRU, RegionProjection
from itmkit.systems import TVRN

TVRN_NUMBERS = {
    "reasoning": "sgr",
    "similarity_dim": 256,
    "dropout": 0.4,  # of both poolings
    "text_encoder.init_args.dropout": 0.4,
    "text_encoder.init_args.embed_dim": 300,
    "text_encoder.init_args.dim": 1024,
    "loss.init_args.margin": 0.2,
    "loss.init_args.temperature": 0.05,
    "loss.init_args.weight": 0.5,  # half the sum of both directions
    "optimizer.init_args.lr": 2.0e-4,
}
MATE_NUMBERS = {
    "fusion.init_args.num_layers": 6,
    "fusion.init_args.num_heads": 16,
    "fusion.init_args.dropout": 0.1,
    "hect_weight": 0.0,  # HECT acts on the fused outputs alone
    "distillation.init_args.similarity_weight": 0.0,
    "distillation.init_args.feature_weight": 1.0,
    "distillation_weight": 1.0,
    "momentum": 0.995,
    "lr_factors": {"text_encoder.backbone": 0.1},
    "optimizer.init_args.lr": 2.0e-4,
    "optimizer.init_args.weight_decay": 1.0e-4,
    "rerank_top_k": 0,
}
PUBLISHED = {
    "tvrn/f30k": TVRN_NUMBERS,
    "tvrn/coco": TVRN_NUMBERS,
    "tvrn/precomp": TVRN_NUMBERS,
    "mate/f30k": MATE_NUMBERS,
    "mate/coco": MATE_NUMBERS,
    "mate/precomp": {"rerank_top_k": 0},
}
CASES = [
    (name, key, value) for name, numbers in PUBLISHED.items() for key, value in numbers.items()
]


@pytest.mark.parametrize(("name", "key", "value"), CASES)
def test_published_number(name: str, key: str, value: Any) -> None:
    found: Any = yaml.safe_load(config_path(name).read_text())["model"]["init_args"]
    for part in key.split("."):
        found = found[part]
    assert found == value


@pytest.mark.parametrize("name", ["mate/f30k", "mate/coco"])
def test_distillation_of_mate_is_half_the_sum_over_both_sides(name: str) -> None:
    numbers = yaml.safe_load(config_path(name).read_text())["model"]["init_args"]
    distil = MomentumDistillationLoss(**numbers["distillation"]["init_args"])
    student, teacher = torch.randn(2, 2, 4, 6)
    divergences = [
        torch.nn.functional.kl_div(one.log_softmax(1), other.softmax(1), reduction="batchmean")
        for one, other in zip(student, teacher, strict=True)
    ]
    found = numbers["distillation_weight"] * distil(*student, *teacher)
    torch.testing.assert_close(found, 0.5 * sum(divergences))


def test_loss_of_tvrn_is_half_the_sum_of_both_directions() -> None:
    scores = torch.rand(5, 5)
    both = hinge_cross_entropy_loss(scores)
    torch.testing.assert_close(HingeCrossEntropyLoss(weight=0.5)(scores), both / 2)
    torch.testing.assert_close(HingeCrossEntropyLoss()(scores), both)
    tvrn = TVRN(RegionProjection(4, 8, hidden_dim=8), BiGRU(9, 8, 8), similarity_dim=4)
    torch.testing.assert_close(tvrn.hinge_cross_entropy(scores), both / 2)


def test_dropout_of_tvrn_is_that_of_both_poolings() -> None:
    tvrn = TVRN(RegionProjection(4, 8, hidden_dim=8), BiGRU(9, 8, 8), similarity_dim=4, dropout=0.4)
    found = {n: m.p for n, m in tvrn.similarity.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert set(found.values()) == {0.4}
    assert {name.split(".")[0] for name in found} == {"visual", "textual"}
