"""Configurations of published systems hold the published numbers, and build what computes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from itmkit.configs import load_config
from itmkit.configs.agreement import completed
from itmkit.systems import MATE, TVRN, Matcher
from itmkit.systems.build import build

TRAINED = {"data.batch_size": 64, "trainer.gradient_clip_val": 2.0}
TVRN_NUMBERS = TRAINED | {
    "model.reasoning": "sgr",
    "model.similarity_dim": 256,
    "model.dropout": 0.4,  # of both poolings
    "model.text_encoder.dropout": 0.4,
    "model.text_encoder.embed_dim": 300,
    "model.text_encoder.dim": 1024,
    "model.loss.margin": 0.2,
    "model.loss.temperature": 0.05,
    "model.loss.weight": 0.5,  # half the sum of both directions
    "model.optimizer.lr": 2.0e-4,
    "data.relation_threshold": 0.2,
}
TVRN_RATE = {  # from 2e-4 to 1e-5 in epoch 20
    "model.lr_scheduler.milestones": [20],
    "model.lr_scheduler.gamma": 0.05,
}
MATE_TRAINED = TRAINED | {
    "model.fusion.num_layers": 6,
    "model.fusion.num_heads": 16,
    "model.fusion.dropout": 0.1,
    "model.warmup": 1,
    "model.optimizer.lr": 2.0e-4,
    "model.optimizer.weight_decay": 1.0e-4,
    "model.lr_scheduler.milestones": [15],
    "model.lr_scheduler.gamma": 0.1,
    "model.rerank_top_k": 0,
    "data.batch_size": 128,
    "data.caption_views": 2,
    "trainer.max_epochs": 20,
}
MATE_NUMBERS = MATE_TRAINED | {
    "model.text_encoder.dropout": 0.1,
    "model.hect_weight": 0.0,  # HECT acts on the fused outputs alone
    "model.distillation.similarity_weight": 0.0,
    "model.distillation.feature_weight": 1.0,
    "model.distillation_weight": 1.0,  # the loss itself is half the sum of both sides
    "model.momentum": 0.995,
    "model.lr_factors": {"text_encoder.backbone": 0.1},
}
PUBLISHED = {
    "tvrn/f30k": TVRN_NUMBERS | TVRN_RATE | {"model.num_regions": 36},
    "tvrn/coco": TVRN_NUMBERS | {"model.num_regions": 36},
    "tvrn/precomp": TVRN_NUMBERS | TVRN_RATE,
    "mate/f30k": MATE_NUMBERS,
    "mate/coco": MATE_NUMBERS,
    "mate/precomp": MATE_TRAINED,
}
TVRN_NAMES = [name for name in PUBLISHED if name.startswith("tvrn")]
MATE_NAMES = ["mate/f30k", "mate/coco"]
CASES = [
    (name, key, value) for name, numbers in PUBLISHED.items() for key, value in numbers.items()
]


def read(name: str) -> Any:
    return completed(load_config(name))


def matcher(name: str, **init_args: Any) -> Any:
    """The model of a configuration, with other arguments."""
    config = read(name)
    config["model"]["init_args"] |= init_args
    return build(config, {"model": Matcher}, source=name)["model"]


@pytest.mark.parametrize(("name", "key", "value"), CASES)
def test_published_number(name: str, key: str, value: Any) -> None:
    found = read(name)
    for part in key.split("."):
        found = found.get("init_args", found)[part]
    assert found == value


@pytest.mark.parametrize("name", TVRN_NAMES)
def test_loss_of_tvrn_is_half_the_sum_of_both_directions(name: str) -> None:
    scores = torch.rand(5, 5, dtype=torch.float64)
    costs = (0.2 + scores - scores.diag()[:, None]).relu().fill_diagonal_(0) / 0.05
    costs_of_columns = (0.2 + scores - scores.diag()).relu().fill_diagonal_(0) / 0.05
    true = torch.arange(5)
    both = F.cross_entropy(costs, true) + F.cross_entropy(costs_of_columns.T, true)
    tvrn = matcher(name)
    assert isinstance(tvrn, TVRN)
    torch.testing.assert_close(tvrn.score_loss(scores.logit()), both / 2)
    by_default = matcher(name, loss=None)
    torch.testing.assert_close(by_default.score_loss(scores.logit()), both / 2)


@pytest.mark.parametrize("name", TVRN_NAMES)
def test_dropout_of_tvrn_is_that_of_the_words_and_of_both_poolings(name: str) -> None:
    tvrn = matcher(name)
    found = {part: one.p for part, one in tvrn.named_modules() if isinstance(one, nn.Dropout)}
    trained = {part: p for part, p in found.items() if not part.startswith("image_encoder")}
    assert set(trained.values()) == {0.4}
    assert {".".join(part.split(".")[:2]) for part in trained} == {
        "text_encoder.dropout",
        "similarity.visual",
        "similarity.textual",
    }


@pytest.mark.parametrize("name", MATE_NAMES)
def test_losses_of_mate_are_the_released_ones(name: str) -> None:
    words = {"class_path": "itmkit.nn.BiGRU", "init_args": {"vocab_size": 9, "dim": 1024}}
    mate = matcher(name, text_encoder=words)  # BERT's weights would have to be downloaded
    assert isinstance(mate, MATE)
    assert mate.weights == {"triplet": 1.0, "hect": 0.0, "distillation": 1.0, "fusion": 1.0}
    assert mate.rerank_top_k == 0
    assert (mate.triplet.margin, mate.triplet.group_size) == (0.2, 2)
    assert mate.triplet.reduction == "sum"
    assert (mate.hect.margin, mate.hect.temperature) == (1.0, 0.5)
    assert (mate.hect.contrastive_weight, mate.hect.num_hard_negatives) == (0.5, 1)
    student, teacher = torch.randn(2, 2, 4, 6)
    found = mate.weights["distillation"] * mate.distillation(*student, *teacher)
    torch.testing.assert_close(found, 0.5 * sum(map(divergence, student, teacher)))


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence between softmaxes over channels, a mean over rows."""
    return F.kl_div(student.log_softmax(1), teacher.softmax(1), reduction="batchmean")
