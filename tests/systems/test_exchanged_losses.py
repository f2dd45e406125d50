"""Any loss of scores trains DAIM and TVRN, and each term of MATE can be another loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from losses import SCORE_LOSSES, VECTOR_LOSSES
from systems import IMAGE, SYSTEMS, TEXT, make_batch

from itmkit.checks import InputError
from itmkit.losses import HECTLoss, InfoNCELoss, TripletLoss, VectorLoss
from itmkit.nn import FusionEncoder, MatchingHead
from itmkit.systems import DAIM, MATE, TVRN, Matcher
from itmkit.testing.processes import loss_of

DIM = 16


def trains(matcher: Matcher, case: str, term: str = "loss") -> None:
    """Five steps on one batch leave every weight of the system with a gradient, and less loss."""
    batch = make_batch(SYSTEMS[case])
    optimizer = torch.optim.SGD([p for p in matcher.parameters() if p.requires_grad], lr=1e-3)
    values = []
    for _ in range(5):
        optimizer.zero_grad()
        terms = loss_of(matcher, batch) if not values else matcher.loss(batch)
        terms["loss"].backward()
        optimizer.step()
        values.append(terms[term].item())
    assert any(p.grad is not None and p.grad.any() for p in matcher.text_encoder.parameters())
    assert min(values[1:]) < values[0]


def daim(**options: Any) -> DAIM:
    torch.manual_seed(0)
    return DAIM(IMAGE["regions"](), TEXT["gru"](), **options)


def mate(**options: Any) -> MATE:
    torch.manual_seed(0)
    weights = dict.fromkeys(["triplet", "hect", "distillation", "fusion"], 0.0)
    weights |= dict.fromkeys(options.pop("terms"), 1.0)
    options |= {f"{name}_weight": weight for name, weight in weights.items()}
    fusion = FusionEncoder(DIM, 1, 2, dropout=0.0, attention_dropout=0.0)
    encoders = IMAGE["regions"](), TEXT["gru"]()
    return MATE(*encoders, fusion, token_drop=0.0, warmup=0, **options)


@pytest.mark.parametrize("name", SCORE_LOSSES)
def test_daim_with_any_loss_of_scores(name):
    trains(daim(loss=SCORE_LOSSES[name]()), "daim")


@pytest.mark.parametrize("name", SCORE_LOSSES)
def test_tvrn_with_any_loss_of_scores(name):
    torch.manual_seed(0)
    encoders = IMAGE["regions"](), TEXT["gru"]()
    trains(TVRN(*encoders, similarity_dim=8, loss=SCORE_LOSSES[name]()), "tvrn_sgr")


@pytest.mark.parametrize("name", sorted(set(SCORE_LOSSES) - {"group"}))
def test_triplet_term_of_mate_is_any_loss_of_scores(name):
    trains(mate(terms=["triplet"], triplet=SCORE_LOSSES[name]()), "mate")


@pytest.mark.parametrize("name", sorted(set(VECTOR_LOSSES) - {"distillation"}))
def test_hect_term_of_mate_is_any_loss_of_vectors(name):
    trains(mate(terms=["hect"], hect=VECTOR_LOSSES[name]()), "mate")


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("name", sorted(set(SCORE_LOSSES) - {"adaptive_margin", "group"}))
def test_fusion_term_of_mate_is_any_loss_of_scores(name, head):
    options = {"matching_head": MatchingHead(DIM)} if head else {}
    system = mate(terms=["fusion"], fusion_loss=SCORE_LOSSES[name](), **options)
    trains(system, "mate", "fusion")


class Distance(torch.nn.Module):
    """A distillation of one's own."""

    def forward(self, image, text, teacher_image, teacher_text, *rest):
        return (image - teacher_image).square().sum() + (text - teacher_text).square().sum()


def test_distillation_term_of_mate_is_any_loss_against_a_teacher():
    system = mate(terms=["triplet", "distillation"], distillation=Distance())
    terms = loss_of(system, make_batch(SYSTEMS["mate"]))
    assert set(terms) == {"triplet", "distillation", "loss"}


@pytest.mark.parametrize("term", ["triplet", "hect", "distillation", "fusion"])
def test_every_term_can_be_left_out(term):
    terms = {"triplet", "hect", "distillation", "fusion"} - {term}
    found = loss_of(mate(terms=terms), make_batch(SYSTEMS["mate"]))
    assert set(found) == terms | {"loss"}


@pytest.mark.parametrize(
    ("argument", "loss", "expected"),
    [
        ("triplet", HECTLoss(), r"\(scores, positives\), such as InfoNCELoss"),
        ("hect", TripletLoss(), r"\(image, text, image_ids\), such as HECTLoss"),
        ("distillation", VectorLoss(InfoNCELoss()), r"\(image, text, teacher_image"),
        ("fusion_loss", HECTLoss(), r"\(scores, positives\), such as InfoNCELoss"),
    ],
)
def test_error_of_a_loss_of_another_kind(argument, loss, expected):
    with pytest.raises(InputError, match=f"{argument} is a .*expected a loss of {expected}"):
        mate(terms=["hect"], **{argument: loss})
