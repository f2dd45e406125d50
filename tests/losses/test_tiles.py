"""Losses of vectors in tiles are those of the whole matrix, and hold no matrix."""

from __future__ import annotations

import math

import pytest
import torch
from losses import VECTOR_LOSSES
from tensor_memory import LargestTensor
from torch import Tensor, nn

from itmkit.losses import GroupTripletLoss, distillation, hect, tiles, vector

ROWS, DIM = 40, 6


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is in tiles, of a few rows."""
    monkeypatch.setattr(tiles, "TILE", 6 * ROWS)
    for module in (distillation, hect, vector):
        monkeypatch.setattr(module, "WHOLE", 0)


def batch(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Images and texts that are alike, some of them nearly zero; and two that a teacher sees."""
    image, text, *teachers = torch.randn(4, ROWS, DIM, dtype=dtype)
    text = text + image
    image[3] *= 1e-5
    text[4] *= 3e-5
    return [image, text, *teachers]


def arguments(loss: nn.Module, ids: Tensor | None, queue: bool = False) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(1)
    if not isinstance(loss, distillation.MomentumDistillationLoss):
        return [ids]
    teachers = list(torch.randn(2, ROWS, DIM, dtype=torch.float64, generator=generator))
    if not queue:
        return [*teachers, ids]
    queues = torch.randn(2, 9, DIM, dtype=torch.float64, generator=generator)
    return [*teachers, ids, *queues, None if ids is None else torch.arange(9)]


def result(loss: nn.Module, pair: list[Tensor], others: list[Tensor | None]) -> list[Tensor]:
    image, text = (one.clone().requires_grad_() for one in pair)
    value = loss(image, text, *others)
    value.backward()
    gradients = [image.grad, text.grad, *(one.grad for one in loss.parameters())]
    return [value.detach(), *gradients, *(one.clone() for one in loss.buffers())]


@pytest.mark.parametrize("ids", [None, torch.arange(ROWS) // 4 * 7 % 30], ids=["all", "shared"])
@pytest.mark.parametrize("name", VECTOR_LOSSES)
def test_value_and_gradients_are_those_of_the_whole(name, ids, monkeypatch, request):
    pair = batch()[:2]
    make = VECTOR_LOSSES[name]
    others = arguments(make(), ids, queue=True)
    expected = result(make().double(), pair, others)
    request.getfixturevalue("small_tiles")
    found = result(make().double(), pair, others)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", VECTOR_LOSSES)
def test_gradcheck(name):
    loss = VECTOR_LOSSES[name]().double().eval()
    image, text = (one.requires_grad_() for one in torch.randn(2, ROWS, 2, dtype=torch.float64))
    teachers = [t[:, :2] for t in arguments(loss, None)[:-1]]
    assert torch.autograd.gradcheck(loss, (image, text, *teachers), fast_mode=True)


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", VECTOR_LOSSES)
def test_autocast_changes_nothing(name):
    loss = VECTOR_LOSSES[name]().eval()
    pair = [one.float() for one in batch()[:2]]
    others = [one if one is None else one.float() for one in arguments(loss, None)]
    expected = result(loss, pair, others)
    loss.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = result(loss, pair, others)
    assert all(map(torch.equal, found, expected))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", VECTOR_LOSSES)
def test_a_batch_of_one_image_costs_nothing_or_is_finite(name):
    loss = VECTOR_LOSSES[name]()
    others = arguments(loss.double(), torch.zeros(ROWS, dtype=torch.long))
    value, *gradients = result(loss, batch()[:2], others)
    assert math.isfinite(value)
    assert all(one.isfinite().all() for one in gradients if one is not None)


@pytest.mark.parametrize("name", VECTOR_LOSSES)
def test_no_matrix_is_held(name, monkeypatch):
    for module in (distillation, hect, vector):
        monkeypatch.setattr(module, "WHOLE", 0)
    monkeypatch.setattr(tiles, "TILE", 2000)
    loss, (image, text, *teachers) = VECTOR_LOSSES[name](), torch.randn(4, 200, 4)
    with LargestTensor() as largest:
        teachers = teachers if name == "distillation" else []
        loss(image.requires_grad_(), text.requires_grad_(), *teachers).backward()
    assert largest.elements <= 4000  # a tile, or k numbers an anchor; the matrix has 40,000


def test_groups_stay_together(monkeypatch):
    for ids in (None, (torch.arange(ROWS) // 2) % 15):
        expected = result(vector.VectorLoss(GroupTripletLoss()), batch_of_groups(), [ids])
        with monkeypatch.context() as patch:
            patch.setattr(tiles, "TILE", 5 * ROWS)
            patch.setattr(vector, "WHOLE", 0)
            found = result(vector.VectorLoss(GroupTripletLoss()), batch_of_groups(), [ids])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("whole", [0, vector.WHOLE])
def test_error_groups_that_are_not_whole(whole, monkeypatch):
    monkeypatch.setattr(vector, "WHOLE", whole)
    with pytest.raises(ValueError, match=r"scores has the shape \(5, 5\); .* group_size = 2"):
        vector.VectorLoss(GroupTripletLoss(group_size=2))(*torch.randn(2, 5, 4))


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("name", ["info_nce_learnt", "hect"])
def test_compile(name):
    """Around the tiles, which stay outside of the graph, and without another graph in each call."""
    loss, (image, text, *_) = VECTOR_LOSSES[name]().double(), batch()
    image.requires_grad_()

    def step(image: Tensor) -> Tensor:
        return loss(2 * image, text) + 1

    compiled = torch.compile(step, backend="eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(image), step(image))
    own, expected = (torch.autograd.grad(one(image), image) for one in (compiled, step))
    torch.testing.assert_close(own, expected)


def batch_of_groups() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return list(torch.randn(2, ROWS, DIM, dtype=torch.float64, generator=generator))
