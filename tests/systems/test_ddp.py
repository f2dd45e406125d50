"""Loss and gradients in several processes are those of one process on the same global batch."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from collectives import counted
from processes import join, leave, run_ranks
from related_shapes import RelatedShapes
from torch import Tensor, nn

from itmkit.data import Batch, Images, ImageTextData, Texts
from itmkit.distributed import world_size
from itmkit.losses import AdaptiveMarginTripletLoss
from itmkit.nn import (
    BiGRU,
    FusionEncoder,
    MaskedBatchNorm,
    MatchingHead,
    RegionProjection,
    SharedLevels,
)
from itmkit.systems import DAIM, MATE, TVRN, Matcher

DIM = 16
# Rows of the global batch up to which each rank has them: two of one image are on rank 1 of two.
BOUNDS = {2: (0, 4, 7), 3: (0, 3, 5, 7)}


def make_mate(matching_head: bool = False, *, fusion: bool = True, **options: Any) -> MATE:
    off = {"dropout": 0.0, "attention_dropout": 0.0}
    mate = MATE(
        RegionProjection(437, DIM, hidden_dim=DIM),
        BiGRU(64, DIM, DIM),
        FusionEncoder(DIM, num_layers=1, num_heads=2, **off) if fusion else None,
        matching_head=MatchingHead(DIM) if matching_head else None,
        token_drop=0.0,
        warmup=0,
        **{"views": 2, "distillation_weight": 0.0} | options,
    )
    if mate.weights["distillation"]:
        names = ("image_encoder", "text_encoder", "image_pool", "text_pool")
        teacher = {name: copy.deepcopy(getattr(mate, name)).eval() for name in names}
        for module in teacher.values():
            module.double()
            for parameter in module.parameters():
                parameter.data.mul_(0.8)
        mate.teacher = SimpleNamespace(**teacher)
        mate.queue_image.normal_()
        mate.queue_text.normal_()
        mate.queue_ids[:4] = torch.tensor([0, 1, 2, 99])
    return mate


def make_daim(levels: bool = False, **options: Any) -> DAIM:
    image: nn.Module = RegionProjection(437, DIM, hidden_dim=DIM)
    text: nn.Module = BiGRU(64, DIM, DIM)
    if levels:
        image, text = SharedLevels(image, 2), SharedLevels(text, 2)
    loss = AdaptiveMarginTripletLoss(margin=0.4, min_rows=2)
    return DAIM(image, text, loss=loss, **options)


def make_tvrn(**options: Any) -> TVRN:
    image, text = RegionProjection(437, DIM, hidden_dim=DIM), BiGRU(64, DIM, DIM)
    return TVRN(image, text, similarity_dim=8, **options)


MATE_CASES: dict[str, Callable[[], Matcher]] = {
    "mate_one_view": partial(make_mate, views=1),
    "mate_two_views": make_mate,
    "mate_teacher": partial(make_mate, distillation_weight=1.0, queue_size=6),
    "mate_matching_head": partial(make_mate, views=1, matching_head=True),
    "mate_plain": partial(make_mate, fusion=False, distillation_weight=1.0, queue_size=6),
    "mate_few_pairs": partial(make_mate, fusion_pairs=3),
}
OTHER_CASES: dict[str, Callable[[], Matcher]] = {
    "daim": make_daim,
    "daim_levels": partial(make_daim, levels=True),
    "daim_warming_up": partial(make_daim, warmup=1),
    "tvrn_sgr": make_tvrn,
    "tvrn_saf": partial(make_tvrn, reasoning="saf"),
    "tvrn_chunks": partial(make_tvrn, reasoning="saf", focal="global", chunk_pairs=3),
    "tvrn_four_regions": partial(make_tvrn, reasoning="saf", num_regions=4),
}
CASES = {2: MATE_CASES | OTHER_CASES, 3: OTHER_CASES}


#: Collectives of a step: MATE's are one gather of all it needs, one of the teacher's vectors, one
#: of pair scores, and those of the gradients; lengths of tokens are exchanged once.
COUNTED = {"mate_plain": 3, "mate_teacher": 6, "daim_levels": 5, "tvrn_sgr": 5}


def make_system(case: str) -> Matcher:
    torch.manual_seed(39)  # with which DAIM's margin moves
    return CASES[2][case]().double()


def make_batch(case: str) -> Batch:
    """Seven pairs, two of one image among the last three, and two more of another."""
    data = ImageTextData(
        partial(RelatedShapes, length=8, four="four" in case),
        batch_size=7,
        caption_views=getattr(make_system(case), "views", 1),
        seed=5,
    )
    batch = next(iter(data.train_dataloader()))
    batch.images.features = batch.images.features.double()
    return batch


def share(batch: Batch, rank: int) -> Batch:
    """The images of a rank and their texts, padded to their own longest only."""
    views = len(batch.texts) // len(batch)
    rows = slice(*BOUNDS[world_size()][rank : rank + 2])
    texts = slice(rows.start * views, rows.stop * views)
    words = batch.texts.mask[texts]
    longest = int(words.sum(1).max())
    features, mask, relations = batch.images.features, batch.images.mask, batch.images.relations
    assert relations is not None
    if mask is not None:
        most = int(mask[rows].sum(1).max())
        features, mask, relations = features[:, :most], mask[:, :most], relations[:, :most, :most]
    return Batch(
        Images(features[rows], None if mask is None else mask[rows], relations=relations[rows]),
        Texts(batch.texts.ids[texts, :longest], words[:, :longest]),
        batch.image_ids[rows],
        batch.text_image_ids[texts],
        batch.text_ids[texts],
    )


class Loss(nn.Module):
    """What DDP wraps: the loss as the output of forward."""

    def __init__(self, system: Matcher) -> None:
        super().__init__()
        self.system = system

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        return self.system.loss(batch)


def result(system: Matcher, terms: dict[str, Tensor]) -> dict[str, dict[str, Tensor | None]]:
    """What a training step leaves behind; buffers are running statistics, margins and queues."""
    terms["loss"].backward()
    return {
        "terms": {name: term.detach() for name, term in terms.items()},
        "gradients": {name: p.grad for name, p in system.named_parameters() if p.requires_grad},
        "buffers": dict(system.named_buffers()),
    }


def run(folder: Path) -> None:
    rank = join(folder)
    found: dict[str, Any] = {}
    for case in CASES[world_size()]:
        system, batch = make_system(case), share(make_batch(case), rank)
        mask = batch.images.mask
        if mask is not None and mask.all():
            batch.images.mask = mask = None  # as the data gives it
        model = nn.parallel.DistributedDataParallel(Loss(system))
        found[case] = result(system, model(batch))
        regions, words = batch.images.features.shape[1], batch.texts.ids.shape[1]
        found[case]["padding"] = regions, words, mask is not None
    if world_size() == 2:
        found["collectives"] = {case: collectives_of(case, rank) for case in COUNTED}
    torch.save(found, folder / f"{rank}.pt")
    leave()


def collectives_of(case: str, rank: int) -> list[str]:
    """What a step on three pairs a process calls, without those of BatchNorm."""
    system = make_system(case)
    for module in system.modules():
        if isinstance(module, MaskedBatchNorm):
            module.eval()
    batch = share(make_batch(case), rank)
    views = len(batch.texts) // len(batch)
    batch = Batch(
        Images(batch.images.features[:3], None, relations=batch.images.relations[:3]),
        Texts(batch.texts.ids[: 3 * views], batch.texts.mask[: 3 * views]),
        batch.image_ids[:3],
        batch.text_image_ids[: 3 * views],
        batch.text_ids[: 3 * views],
        sizes=(3, 3),
    )
    with counted() as made:
        system.loss(batch)["loss"].backward()
    return made


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What every rank found, by the number of processes."""
    ranks = {}
    for size in CASES:
        folder = tmp_path_factory.mktemp("ranks")
        run_ranks(__file__, folder, size=size)
        ranks[size] = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]
    return ranks


@pytest.fixture(scope="module")
def expected() -> dict[str, dict[str, dict[str, Tensor | None]]]:
    """What one process finds."""
    systems = {case: make_system(case) for case in CASES[2]}
    return {case: result(system, system.loss(make_batch(case))) for case, system in systems.items()}


@pytest.mark.parametrize(("size", "case"), [(size, case) for size in CASES for case in CASES[size]])
def test_ddp_step_is_that_of_one_process(
    found: dict[int, list[dict[str, Any]]],
    expected: dict[str, dict[str, dict[str, Tensor | None]]],
    size: int,
    case: str,
) -> None:
    tolerances = {"terms": 1e-10, "gradients": 1e-8, "buffers": 1e-10}
    for own in found[size]:
        for kind, tolerance in tolerances.items():
            assert own[case][kind].keys() == expected[case][kind].keys()
            for name, value in expected[case][kind].items():
                assert value is not None, name
                torch.testing.assert_close(
                    own[case][kind][name], value, atol=tolerance, rtol=tolerance, msg=name
                )


@pytest.mark.parametrize("case", COUNTED)
def test_ddp_collectives_of_a_step(found: dict[int, list[dict[str, Any]]], case: str) -> None:
    for own in found[2]:
        assert len(own["collectives"][case]) == COUNTED[case], own["collectives"][case]


def test_ddp_cases_are_those_that_matter(
    expected: dict[str, dict[str, dict[str, Tensor | None]]],
) -> None:
    """All terms, losses that are not zero, margins and statistics that have moved."""
    for case, one in expected.items():
        assert all(term > 0 for term in one["terms"].values())
        if "mate" in case:
            without = {"mate_teacher": 0, "mate_plain": 1}.get(case, 1)
            assert len(one["terms"]) == 5 - without
        if "daim" in case:
            assert one["buffers"]["score_loss.margin"] != 0.4
        counts = [value for name, value in one["buffers"].items() if name.endswith("tracked")]
        assert counts
        assert all(count == 1 for count in counts)


@pytest.mark.parametrize("size", CASES)
def test_ddp_ranks_were_padded_differently(
    found: dict[int, list[dict[str, Any]]], size: int
) -> None:
    """Numbers of regions and of words differ, and not every rank has a mask of its regions."""
    for what in zip(*(own["tvrn_sgr"]["padding"] for own in found[size]), strict=True):
        assert len(set(what)) > 1


if __name__ == "__main__":
    run(Path(sys.argv[1]))
