"""Loss and gradients in several processes are those of one process on the same global batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from collectives import counted
from processes import join, leave, run_ranks
from systems import ALL, SYSTEMS, make_batch
from torch import Tensor, nn

from itmkit.data import Batch, Images
from itmkit.data.padding import trimmed
from itmkit.distributed import world_size
from itmkit.nn import MaskedBatchNorm
from itmkit.systems import MATE, Matcher
from itmkit.testing.batches import doubled
from itmkit.testing.processes import attach_teachers

# Rows of the global batch up to which each rank has them: two of one image are on rank 1 of two.
BOUNDS = {2: (0, 4, 7), 3: (0, 3, 5, 7)}
CASES = {2: ALL, 3: SYSTEMS}


#: Collectives of a step: MATE's are one gather of all it needs, one of the teacher's vectors, one
#: of pair scores, and those of the gradients; lengths of tokens are exchanged once.
COUNTED = {"mate_no_fusion": 3, "mate": 6, "daim_levels": 5, "tvrn_sgr": 5}


def make_system(case: str) -> Matcher:
    """In the middle of training: with teachers that are behind, and a queue partly filled."""
    torch.manual_seed(0)  # with which DAIM's margin moves
    system = ALL[case].make().double()
    attach_teachers(system)
    teacher: nn.Module | None = getattr(system, "teacher", None)
    for parameter in teacher.parameters() if teacher is not None else ():
        parameter.data.mul_(0.8)
    if isinstance(system, MATE) and len(system.queue):
        system.queue.image.normal_()
        system.queue.text.normal_()
        system.queue.ids[:4] = torch.tensor([0, 1, 2, 99])
    return system


def global_batch(case: str) -> Batch:
    """Seven pairs, two of one image among the last three, and two more of another."""
    return doubled(make_batch(ALL[case]))


def share(batch: Batch, rows: slice, sizes: tuple[int, ...] | None = None) -> Batch:
    """Some images and their texts, padded to their own longest only."""
    views = len(batch.texts) // len(batch)
    texts = slice(rows.start * views, rows.stop * views)
    images = batch.images.rows(rows)
    if images.mask is not None:
        most = int(images.mask.sum(1).max())
        mask = images.mask[:, :most]
        relations = images.relations
        images = Images(
            images.features[:, :most],
            None if mask.all() else mask,  # as the data gives it
            relations=None if relations is None else relations[:, :most, :most],
        )
    return Batch(
        images,
        trimmed(batch.texts.rows(texts)),
        batch.image_ids[rows],
        batch.text_image_ids[texts],
        batch.text_ids[texts],
        sizes=sizes,
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
        rows = slice(*BOUNDS[world_size()][rank : rank + 2])
        system, batch = make_system(case), share(global_batch(case), rows)
        model = nn.parallel.DistributedDataParallel(Loss(system))
        found[case] = result(system, model(batch))
        regions, words = batch.images.features.shape[1], batch.texts.ids.shape[1]
        found[case]["padding"] = regions, words, batch.images.mask is not None
    if world_size() == 2:
        found["collectives"] = {case: collectives_of(case, rank) for case in COUNTED}
        found["sizes"] = loss_of_given_sizes(rank)
    torch.save(found, folder / f"{rank}.pt")
    leave()


def loss_of_given_sizes(rank: int) -> Tensor:
    """The local loss of some pairs where a batch knows how many every process has."""
    rows = slice(*BOUNDS[2][rank : rank + 2])
    batch = share(global_batch("daim_branch"), rows, sizes=(4, 3))
    return make_system("daim_branch").loss(batch)["local"].detach()


def collectives_of(case: str, rank: int) -> list[str]:
    """What a step on three pairs a process calls, without those of BatchNorm."""
    system = make_system(case)
    for module in system.modules():
        if isinstance(module, MaskedBatchNorm):
            module.eval()
    batch = share(global_batch(case), slice(3 * rank, 3 * rank + 3), sizes=(3, 3))
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
    return {
        case: result(system, system.loss(global_batch(case))) for case, system in systems.items()
    }


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
                    own[case][kind][name],
                    value,
                    atol=tolerance,
                    rtol=tolerance,
                    msg=lambda text, name=name: f"{name}: {text}",
                )


def test_ddp_first_pairs_are_those_of_the_global_batch(
    found: dict[int, list[dict[str, Any]]],
    expected: dict[str, dict[str, dict[str, Tensor | None]]],
) -> None:
    """Where one process has all of them, or another has one; with sizes that are given."""
    for case, own in (("daim_branch", 1), ("tvrn_branch", 0)):
        assert ALL[case].make().local_pairs - BOUNDS[2][1] == own
    for one in found[2]:
        torch.testing.assert_close(one["sizes"], expected["daim_branch"]["terms"]["local"])


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
            without = case in ("mate_one_view", "mate_no_fusion", "mate_mean_path")
            assert len(one["terms"]) == 5 - without
        if "daim" in case:
            assert one["buffers"]["score_loss.margin"] != 0.4
        counts = [value for name, value in one["buffers"].items() if name.endswith("tracked")]
        assert all(count == 1 for count in counts)
        assert counts or case in ("dual_encoder", "dual_corrected")


@pytest.mark.parametrize("size", CASES)
def test_ddp_ranks_were_padded_differently(
    found: dict[int, list[dict[str, Any]]], size: int
) -> None:
    """Numbers of regions and of words differ, and not every rank has a mask of its regions."""
    for what in zip(*(own["tvrn_sgr"]["padding"] for own in found[size]), strict=True):
        assert len(set(what)) > 1


if __name__ == "__main__":
    run(Path(sys.argv[1]))
