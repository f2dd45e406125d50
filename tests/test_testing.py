"""The public checks pass on what keeps the laws, and name the law that something else breaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from systems import ALL, SYSTEMS, TEXT, make_batch, own_captions
from torch import Tensor, nn

from itmkit.data import Batch, Images, Texts
from itmkit.nn import RegionProjection
from itmkit.retrieval import Encoding
from itmkit.systems import DAIM, Matcher
from itmkit.testing import check_encoder, check_loss, check_matcher, check_pairs_alone


@pytest.mark.parametrize("name", [*SYSTEMS, "mate_groups", "tvrn_branch"])  # with hubs corrected
def test_systems_keep_the_laws(name: str) -> None:
    case = ALL[name]
    processes = 2 if name in ("mate", "daim") else 1  # tests/systems/test_ddp.py has all of them
    pads = case.images != "four"
    check_matcher(case.make, make_batch(case), processes=processes, pads_regions=pads)


@pytest.mark.parametrize("name", TEXT)
def test_text_encoders_keep_the_contract(name: str) -> None:
    texts = make_batch(SYSTEMS["daim"]).texts
    check_encoder(TEXT[name], texts.ids, texts.mask)


def test_image_encoder_keeps_the_contract() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    check_encoder(lambda: RegionProjection(6, 4, hidden_dim=4), torch.randn(2, 3, 6), mask)


class Crooked(DAIM):
    """DAIM with one fault."""

    fault = ""

    def encode_image(self, images: Images) -> Encoding:
        encoding = super().encode_image(images)
        if self.fault == "batch":
            tokens = encoding.items()["level0_tokens"]
            return Encoding(**encoding.items() | {"level0_tokens": tokens - tokens.mean()})
        return images.features if self.fault == "tensor" else encoding  # type: ignore[return-value]

    def encode_text(self, texts: Texts) -> Encoding:
        encoding = super().encode_text(texts)
        if self.fault == "padding":
            every = torch.ones_like(encoding.items()["level0_mask"])
            return Encoding(**encoding.items() | {"level0_mask": every})
        return encoding

    def score(self, images: Encoding, texts: Encoding) -> Tensor:
        scores = super().score(images, texts)
        if self.fault == "gallery":
            return scores - scores.mean()
        if self.fault == "lowered":
            return scores.float()
        if self.fault == "half" and torch.is_autocast_enabled("cpu"):
            return scores.bfloat16()
        return scores * 0 if self.fault == "equal" else scores

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        terms = super().loss(batch)
        if self.fault == "lone":
            return terms["loss"]  # type: ignore[return-value]
        return {"total": terms["loss"]} if self.fault == "name" else terms


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("batch", "scores change by .* where image 0 and caption 0 are alone"),
        ("padding", "scores change by .*(alone|padding)"),
        ("gallery", "scores change by .*alone"),
        ("equal", "all scores are equal"),
        ("name", "expected a term 'loss'"),
        ("lone", "loss gives a torch.float64 tensor; expected a dict of terms"),
        ("tensor", "encode_image gives a torch.float64 tensor; expected Encoding"),
        ("lowered", "float64 are torch.float32; expected torch.float64: .*at_least_float32"),
        ("half", "under autocast scores are torch.bfloat16; expected torch.float32"),
    ],
)
def test_a_broken_law_of_a_system_is_named(fault: str, law: str) -> None:
    case = SYSTEMS["daim"]

    def make() -> Matcher:
        matcher = case.make()
        matcher.__class__ = type("Crooked", (Crooked,), {"fault": fault})
        return matcher

    with pytest.raises(AssertionError, match=law):
        check_matcher(make, make_batch(case))


def test_captions_of_one_process_alone_are_noticed() -> None:
    with pytest.raises(AssertionError, match=r"(the term|the gradient) .* differs by .* of 2"):
        check_matcher(own_captions, make_batch(SYSTEMS["daim"]))


class Wrong(nn.Module):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def forward(self, scores: Tensor, positives: Tensor | None = None) -> Tensor:
        if self.fault == "norm":
            return (scores.norm() * 1e7).float()
        if self.fault == "graph":
            return torch.zeros(())
        if self.fault == "precision":
            return scores.sum()
        return scores.float().cumsum(0)[0].exp().sum().log()


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("norm", "the gradient of .* has the norm"),
        ("graph", "has no graph"),
        ("precision", "not float32"),
        ("order", r"depends on the order|is (inf|nan)"),
    ],
)
def test_a_broken_law_of_a_loss_is_named(fault: str, law: str) -> None:
    with pytest.raises(AssertionError, match=law):
        check_loss(lambda: Wrong(fault))


class Unknown(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits.sum()


def test_a_loss_of_an_unknown_kind_is_named() -> None:
    with pytest.raises(
        AssertionError, match=r"Unknown, which takes \(logits\); expected a loss of"
    ):
        check_loss(Unknown)


class Mixed(nn.Module):
    dim = 4

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.linear = nn.Linear(6, 4)
        if fault == "unused":
            self.spare = nn.Linear(1, 1)
        if fault == "dim":
            self.dim = 5

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        tokens = self.linear(x)
        if self.fault == "stack":
            tokens = tokens - tokens.mean(0)
        if self.fault == "padding":
            tokens = tokens - tokens.mean(1, keepdim=True)
        return tokens, mask


@pytest.mark.parametrize(
    ("fault", "law"),
    [
        ("unused", "no gradient reaches"),
        ("dim", "expected .2, tokens, 5."),
        ("stack", "with what else is in the stack"),
        ("padding", "with what padding holds"),
    ],
)
def test_a_broken_contract_is_named(fault: str, law: str) -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with pytest.raises(AssertionError, match=law):
        check_encoder(lambda: Mixed(fault), torch.randn(2, 3, 6), mask)


def test_scores_that_are_wrong_by_little_are_seen() -> None:
    case = SYSTEMS["daim"]
    torch.manual_seed(0)
    matcher, batch = case.make(), make_batch(case)
    with pytest.raises(AssertionError, match="scores change"):
        check_pairs_alone(matcher, batch, tolerance=-1.0)
