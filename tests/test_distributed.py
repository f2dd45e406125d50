"""Two real processes (gloo) run this file as a script; the tests look at what they saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from collectives import counted
from processes import join, leave, run_ranks
from torch import Tensor, nn

from itmkit.distributed import gather, gather_all, rank, world_size
from itmkit.losses import GroupTripletLoss, HECTLoss, MomentumDistillationLoss, TripletLoss
from itmkit.retrieval import Encoding

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
            + GroupTripletLoss()(scores, image_ids=ids[::2])
            + HECTLoss(num_hard_negatives=2)(image, text, ids)
            + MomentumDistillationLoss(feature_weight=1.0)(image, text, *teachers, ids)
        )


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(5)
    x, y = torch.randn(2, 8, 6, dtype=torch.float64)
    return x, y, torch.tensor([0, 0, 1, 1, 0, 0, 2, 2])


def rows(case: str, own_rank: int) -> Tensor:
    start, count = 10 * own_rank, SIZES[case][own_rank]
    return torch.arange(start, start + count)


def captions(case: str, own_rank: int) -> tuple[Tensor, Tensor]:
    """Tokens of 3 on rank 0 and of 5 on rank 1, the last of a row padding in every other row."""
    own, longest = rows(case, own_rank), (3, 5)[own_rank]
    tokens = own.double()[:, None, None].expand(-1, longest, 2) + torch.arange(longest)[:, None]
    mask = torch.ones(len(own), longest, dtype=torch.bool)
    mask[1::2, -1] = False
    return tokens.contiguous(), mask


def packed(case: str, own_rank: int) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """Tensors of several dtypes gathered at once, their gradients, and the collectives made."""
    own = rows(case, own_rank)
    wide = own.double()[:, None].expand(-1, 3).clone().requires_grad_()
    narrow = own.to(torch.bfloat16).requires_grad_()
    tensors = [wide, own % 2 == 0, narrow, own, torch.zeros(len(own), 0)]
    with counted() as collectives:
        out = gather_all(tensors, sizes=SIZES[case])
        loss = (own_rank + 1) * (out[0].sum() + 2 * out[2].double().sum())
        gradients = torch.autograd.grad(loss, [wide, narrow])
    return [one.detach() for one in out], list(gradients), collectives


def run(folder: Path) -> None:
    own_rank = join(folder)
    found: dict[str, Any] = {"rank": rank(), "world_size": world_size()}
    for case in SIZES:
        own = rows(case, own_rank)
        found[f"{case}/int"] = gather(own)
        found[f"{case}/bool"] = gather(own % 2 == 0)
        tokens = own.double()[:, None, None].expand(-1, 3, 2).requires_grad_()
        gathered = gather(tokens)
        found[f"{case}/tokens"] = gathered.detach()
        weight = torch.arange(1.0, len(gathered) + 1).double() * (own_rank + 1)
        (found[f"{case}/grad"],) = torch.autograd.grad(
            (weight[:, None, None] * gathered).sum(), tokens
        )
        found[f"{case}/half"] = gather(own.to(torch.bfloat16))
        tokens, mask = captions(case, own_rank)
        tokens.requires_grad_()
        encoding = Encoding(tokens=tokens, mask=mask, vector=None).gathered()
        found[f"{case}/captions"] = encoding.tokens.detach(), encoding.mask
        weight = weight[:, None, None] * torch.arange(1.0, 6).double()[:, None]
        (found[f"{case}/captions_grad"],) = torch.autograd.grad(
            (weight * encoding.tokens).sum(), tokens
        )
        plain = Encoding(tokens=own[:, None, None].expand(-1, 3, 2)).gathered()
        found[f"{case}/unmasked"] = plain.tokens, plain.mask
        found[f"{case}/packed"] = packed(case, own_rank)
    try:
        gather(torch.zeros(2, 3 + own_rank))
    except ValueError as error:
        found["error"] = str(error)
    for case, sizes in SPLITS.items():
        start = sum(sizes[:own_rank])
        own_pairs = [t[start : start + sizes[own_rank]] for t in pairs()]
        model = nn.parallel.DistributedDataParallel(Pair())
        loss = model(*own_pairs)
        loss.backward()
        found[f"{case}/loss"] = loss.detach()
        found[f"{case}/gradients"] = [p.grad for p in model.parameters() if p.requires_grad]
    torch.save(found, folder / f"{own_rank}.pt")
    leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(__file__, folder)
    return [torch.load(folder / f"{n}.pt", weights_only=True) for n in range(2)]


@pytest.mark.parametrize("case", SIZES)
def test_ddp_values_and_order(found, case):
    expected = torch.cat([rows(case, n) for n in range(2)])
    for n in range(2):
        assert torch.equal(found[n][f"{case}/int"], expected)
        assert torch.equal(found[n][f"{case}/bool"], expected % 2 == 0)
        assert torch.equal(found[n][f"{case}/half"], expected.to(torch.bfloat16))
        tokens = expected.double()[:, None, None].expand(-1, 3, 2)
        assert torch.equal(found[n][f"{case}/tokens"], tokens)


@pytest.mark.parametrize("case", SIZES)
def test_ddp_backward_sums_over_ranks(found, case):
    total = sum(SIZES[case])
    weights = 3 * torch.arange(1.0, total + 1).double()  # rank 0 weighs once, rank 1 twice
    for n, own in enumerate(weights.split(SIZES[case])):
        expected = own[:, None, None].expand(-1, 3, 2)
        assert torch.equal(found[n][f"{case}/grad"], expected)


@pytest.mark.parametrize("case", SPLITS)
def test_ddp_loss_and_gradient_are_those_of_one_process(found, case):
    model = Pair()
    loss = model(*pairs())
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    for n in range(2):
        torch.testing.assert_close(found[n][f"{case}/loss"], loss.detach(), atol=0, rtol=1e-12)
        ranks = found[n][f"{case}/gradients"]
        for own, expected in zip(ranks, gradients, strict=True):
            torch.testing.assert_close(own, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("case", SIZES)
def test_ddp_tokens_are_padded_to_the_longest_of_all_ranks(found, case):
    parts = [captions(case, n) for n in range(2)]
    expected = torch.zeros(sum(SIZES[case]), 5, 2).double()
    real = torch.zeros(sum(SIZES[case]), 5, dtype=torch.bool)
    start = 0
    for tokens, mask in parts:
        stop = start + len(tokens)
        expected[start:stop, : tokens.shape[1]] = tokens
        real[start:stop, : tokens.shape[1]] = mask
        start = stop
    for own in found:
        gathered, mask = own[f"{case}/captions"]
        assert torch.equal(gathered, expected)
        assert torch.equal(mask, real)
        plain, none = own[f"{case}/unmasked"]
        assert none is None
        assert torch.equal(plain[:, 2, 1], own[f"{case}/int"])


@pytest.mark.parametrize("case", SIZES)
def test_ddp_backward_of_tokens_sums_over_ranks(found, case):
    weights = 3 * torch.arange(1.0, sum(SIZES[case]) + 1).double()
    for own, part, (tokens, _) in zip(
        found, weights.split(SIZES[case]), (captions(case, n) for n in range(2)), strict=True
    ):
        places = torch.arange(1.0, 1 + tokens.shape[1]).double()
        expected = (part[:, None, None] * places[:, None]).expand_as(tokens)
        assert torch.equal(own[f"{case}/captions_grad"], expected)


@pytest.mark.parametrize("case", SIZES)
def test_ddp_one_collective_each_way_for_several_tensors_of_known_sizes(found, case):
    expected = torch.cat([rows(case, n) for n in range(2)])
    for own, size in zip(found, SIZES[case], strict=True):
        (wide, even, narrow, plain, empty), gradients, collectives = own[f"{case}/packed"]
        assert torch.equal(wide, expected.double()[:, None].expand(-1, 3))
        assert torch.equal(even, expected % 2 == 0)
        assert torch.equal(narrow, expected.to(torch.bfloat16))
        assert torch.equal(plain, expected)
        assert empty.shape == (len(expected), 0)
        assert torch.equal(gradients[0], torch.full((size, 3), 3.0).double())
        assert torch.equal(gradients[1], torch.full((size,), 6.0, dtype=torch.bfloat16))
        assert collectives == ["all_gather", "reduce_scatter"]


def test_ddp_rank_and_world_size(found):
    assert [own["rank"] for own in found] == [0, 1]
    assert [own["world_size"] for own in found] == [2, 2]


def test_ddp_error_when_other_sizes_differ(found):
    for n in range(2):
        assert "first size only" in found[n]["error"]
        assert "[(2, 3), (2, 4)]" in found[n]["error"]


def test_one_process_gets_its_tensor_back():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert gather(tensor) is tensor
    encoding = Encoding(tokens=torch.randn(3, 4, 2))
    assert encoding.gathered() is encoding
    assert (rank(), world_size()) == (0, 1)


def test_one_process_with_a_group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        tensor = torch.randn(3, 2)
        assert gather(tensor) is tensor
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("shape", [(), (1,) * 9])
def test_error_dimensions(shape):
    with pytest.raises(ValueError, match="dimensions; expected 1 to 8"):
        gather(torch.zeros(shape))


def test_compile():
    def norm(tensor: Tensor) -> Tensor:
        return gather(tensor).norm()

    compiled = torch.compile(norm, fullgraph=True, backend="eager")
    tensor = torch.randn(3, 2)
    torch.testing.assert_close(compiled(tensor), norm(tensor))


if __name__ == "__main__":
    run(Path(sys.argv[1]))
