"""Losses of 256 images and texts, from vectors to the gradients of the vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor

from benchmarks import baselines_losses as loops
from benchmarks.machine import gemm_rate
from benchmarks.timing import Comparison, interleave
from itmkit.losses import (
    AdaptiveMarginTripletLoss,
    GroupTripletLoss,
    HECTLoss,
    HingeCrossEntropyLoss,
    TripletLoss,
)

ROWS, DIM, VIEWS = 256, 1024, 2

#: image vectors and text vectors to a loss
Loss = Callable[[Tensor, Tensor], Tensor]


def comparisons() -> Iterator[Comparison]:
    """Every loss against a loop, and against the nearest of pytorch-metric-learning."""
    ours: dict[str, Loss] = {
        "hect": HECTLoss(),
        "adaptive_margin": _of_scores(
            lambda scores: AdaptiveMarginTripletLoss(reduction="sum")(scores)
        ),
        "group_triplet": _of_scores(GroupTripletLoss(group_size=VIEWS, reduction="sum")),
        "triplet": _of_scores(TripletLoss(reduction="sum")),
        "hinge_cross_entropy": _of_scores(HingeCrossEntropyLoss()),
    }
    loop: dict[str, Loss] = {
        "hect": loops.hect_loop,
        "adaptive_margin": _of_scores(lambda scores: loops.adaptive_margin_loop(scores, 0.2)),
        "group_triplet": _of_scores(lambda scores: loops.triplet_loop(scores, group_size=VIEWS)),
        "triplet": _of_scores(loops.triplet_loop),
        "hinge_cross_entropy": _of_scores(loops.hinge_cross_entropy_loop),
    }
    for name in ours:
        yield _compared(
            f"losses.{name}", ours[name], loop[name], against="a loop over anchors", target=10
        )
    each, groups = torch.arange(ROWS), torch.arange(ROWS // VIEWS).repeat_interleave(VIEWS)
    miner = "`TripletMarginLoss` with `BatchHardMiner`"
    yield _compared(
        "losses.hect_pml",
        ours["hect"],
        _pml_hect(each),
        against=miner,
        target=1.5,
        alike=HECTLoss(contrastive_weight=0),
        note="theirs lacks the contrastive part; the difference is that of ours without it.",
    )
    for name, labels, note in (
        (
            "adaptive_margin",
            each,
            "the margin of theirs stays; the difference is that of `triplet`.",
        ),
        ("group_triplet", groups, ""),
        ("triplet", each, ""),
    ):
        yield _compared(
            f"losses.{name}_pml",
            ours[name],
            _pml_triplet(labels),
            against=f"{miner}, once a direction",
            target=1.5,
            alike=ours["triplet"] if name == "adaptive_margin" else None,
            note=note,
        )


def _compared(
    name: str,
    ours: Loss,
    theirs: Loss,
    *,
    against: str,
    target: float,
    alike: Loss | None = None,
    note: str = "",
) -> Comparison:
    """Both, timed; ``alike`` is what of ours computes the same as theirs, if not all of it."""
    image, text = _vectors()
    loop = target > 2
    seconds = interleave(
        {"ours": lambda: _step(ours, image, text), "theirs": lambda: _step(theirs, image, text)},
        repeats=5 if loop else 31,
    )
    expected, found = (_step(loss, image, text) for loss in (theirs, alike or ours))
    # HECT: all 2n rows with all, to find the few that it differentiates. Elsewhere: n images with
    # n texts, and twice that backward.
    products = (2 * ROWS) ** 2 if "hect" in name else 3 * ROWS**2
    return Comparison(
        name=name,
        work=f"{name.split('.')[1].removesuffix('_pml')}, {ROWS} pairs × {DIM}, forward + backward",
        against=against,
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        target=target,
        difference=max(_difference(*pair) for pair in zip(found, expected, strict=True)),
        floors={"GEMM": 2 * products * DIM / gemm_rate()},
        note=note,
    )


def _vectors() -> tuple[Tensor, Tensor]:
    """Vectors of images, two views each, and of their texts: alike, but not beyond confusion."""
    torch.manual_seed(0)
    seen = torch.randn(ROWS // VIEWS, DIM).repeat_interleave(VIEWS, dim=0)
    image, text = (seen + 3 * torch.randn(ROWS, DIM) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_()


def _step(loss: Loss, image: Tensor, text: Tensor) -> list[Tensor]:
    image.grad = text.grad = None
    value = loss(image, text)
    value.backward()
    gradients = [vectors.grad for vectors in (image, text) if vectors.grad is not None]
    return [value.detach(), *gradients]


def _difference(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def _of_scores(loss: Callable[[Tensor], Tensor]) -> Loss:
    return lambda image, text: loss(F.normalize(image, dim=1) @ F.normalize(text, dim=1).T)


def _pml_hect(labels: Tensor) -> Loss:
    """The triplet part of HECT: hardest negatives among images and texts, unit vectors."""
    distance, labels = distances.LpDistance(), labels.repeat(2)
    mine = miners.BatchHardMiner(distance=distance)
    triplet = losses.TripletMarginLoss(1.0, distance=distance, reducer=reducers.MeanReducer())

    def loss(image: Tensor, text: Tensor) -> Tensor:
        z = torch.cat([image, text])
        value: Tensor = triplet(z, labels, mine(z, labels))
        return value

    return loss


def _pml_triplet(labels: Tensor) -> Loss:
    """Hardest positive and negative in the other modality, images to texts and back."""
    # The library leaves out the diagonal where both labels are one object.
    distance, others = distances.CosineSimilarity(), labels.clone()
    mine = miners.BatchHardMiner(distance=distance)
    triplet = losses.TripletMarginLoss(0.2, distance=distance, reducer=reducers.SumReducer())

    def loss(image: Tensor, text: Tensor) -> Tensor:
        total: Tensor = sum(
            triplet(one, labels, mine(one, labels, other, others), other, others)
            for one, other in ((image, text), (text, image))
        )
        return total

    return loss
