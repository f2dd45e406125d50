"""Two real processes (gloo) run this file as a script; the tests look at what they saved."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from itmkit.distributed import gather
from itmkit.losses import GroupTripletLoss, HECTLoss, MomentumDistillationLoss, TripletLoss

SIZES = {"uneven": (3, 2), "even": (2, 2), "one_empty": (4, 0), "both_empty": (0, 0)}
SPLITS = {"even": (4, 4), "uneven": (5, 3), "one_empty": (8, 0)}  # pairs of the gradient contract


class Pair(nn.Module):
    """Image and text encoder, and a frozen teacher of both."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.image, self.text, self.teacher = (nn.Linear(6, 4).double() for _ in range(3))
        self.teacher.requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor, ids: Tensor) -> Tensor:
        image, text = gather(self.image(x)), gather(self.text(y))
        teachers = gather(self.teacher(x)), gather(self.teacher(y))
        ids = gather(ids)
        scores = image @ text.T
        return (
            TripletLoss()(scores)
            + TripletLoss(negatives="all")(scores, ids[:, None] == ids)
            + GroupTripletLoss()(scores, ids[::2])
            + HECTLoss(num_hard_negatives=2)(image, text, ids)
            + MomentumDistillationLoss(feature_weight=1.0)(image, text, *teachers, ids)
        )


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(5)
    x, y = torch.randn(2, 8, 6, dtype=torch.float64)
    return x, y, torch.tensor([0, 0, 1, 1, 0, 0, 2, 2])


def rows(case: str, rank: int) -> Tensor:
    start, count = 10 * rank, SIZES[case][rank]
    return torch.arange(start, start + count)


def run(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for case in SIZES:
        own = rows(case, rank)
        found[f"{case}/int"] = gather(own)
        found[f"{case}/bool"] = gather(own % 2 == 0)
        tokens = own.double()[:, None, None].expand(-1, 3, 2).requires_grad_()
        gathered = gather(tokens)
        found[f"{case}/tokens"] = gathered.detach()
        weight = torch.arange(1.0, len(gathered) + 1).double() * (rank + 1)
        (found[f"{case}/grad"],) = torch.autograd.grad(
            (weight[:, None, None] * gathered).sum(), tokens
        )
        found[f"{case}/half"] = gather(own.to(torch.bfloat16))
    try:
        gather(torch.zeros(2, 3 + rank))
    except ValueError as error:
        found["error"] = str(error)
    for case, sizes in SPLITS.items():
        start = sum(sizes[:rank])
        own_pairs = [t[start : start + sizes[rank]] for t in pairs()]
        model = nn.parallel.DistributedDataParallel(Pair())
        loss = model(*own_pairs)
        loss.backward()
        found[f"{case}/loss"] = loss.detach()
        found[f"{case}/gradients"] = [p.grad for p in model.parameters() if p.requires_grad]
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)],
            env={**os.environ, "PYTHONPATH": path},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", SIZES)
def test_ddp_values_and_order(found, case):
    expected = torch.cat([rows(case, rank) for rank in range(2)])
    for rank in range(2):
        assert torch.equal(found[rank][f"{case}/int"], expected)
        assert torch.equal(found[rank][f"{case}/bool"], expected % 2 == 0)
        assert torch.equal(found[rank][f"{case}/half"], expected.to(torch.bfloat16))
        tokens = expected.double()[:, None, None].expand(-1, 3, 2)
        assert torch.equal(found[rank][f"{case}/tokens"], tokens)


@pytest.mark.parametrize("case", SIZES)
def test_ddp_backward_sums_over_ranks(found, case):
    total = sum(SIZES[case])
    weights = 3 * torch.arange(1.0, total + 1).double()  # rank 0 weighs once, rank 1 twice
    for rank, own in enumerate(weights.split(SIZES[case])):
        expected = own[:, None, None].expand(-1, 3, 2)
        assert torch.equal(found[rank][f"{case}/grad"], expected)


@pytest.mark.parametrize("case", SPLITS)
def test_ddp_loss_and_gradient_are_those_of_one_process(found, case):
    model = Pair()
    loss = model(*pairs())
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    for rank in range(2):
        torch.testing.assert_close(found[rank][f"{case}/loss"], loss.detach(), atol=0, rtol=1e-12)
        ranks = found[rank][f"{case}/gradients"]
        for own, expected in zip(ranks, gradients, strict=True):
            torch.testing.assert_close(own, expected, atol=1e-10, rtol=1e-10)


def test_ddp_error_when_other_sizes_differ(found):
    for rank in range(2):
        assert "first size only" in found[rank]["error"]
        assert "[(2, 3), (2, 4)]" in found[rank]["error"]


def test_one_process_gets_its_tensor_back():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert gather(tensor) is tensor


def test_one_process_with_a_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        tensor = torch.randn(3, 2)
        assert gather(tensor) is tensor
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(), (1,) * 9])
def test_error_dimensions(shape):
    with pytest.raises(ValueError, match="tensor: expected 1 to 8 dimensions"):
        gather(torch.zeros(shape))


def test_compile():
    def norm(tensor: Tensor) -> Tensor:
        return gather(tensor).norm()

    compiled = torch.compile(norm, fullgraph=True, backend="eager")
    tensor = torch.randn(3, 2)
    torch.testing.assert_close(compiled(tensor), norm(tensor))


if __name__ == "__main__":
    run(int(sys.argv[1]), Path(sys.argv[2]))
