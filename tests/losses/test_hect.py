from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itmkit.losses import HECTLoss
from itmkit.losses.functional import hect_from_similarities, hect_loss


def naive_core(anchors: list[tuple[float, list[float]]], m: float, tau: float, lam: float) -> float:
    triplets, contrasts = [], []
    for positive, negatives in anchors:
        if not negatives:
            continue
        distance = math.sqrt(max(0.0, 2 - 2 * positive))
        nearest = math.sqrt(max(0.0, 2 - 2 * max(negatives)))
        triplets.append(max(0.0, distance - nearest + m))
        denominator = sum(math.exp(s / tau) for s in negatives)
        contrasts.append(-math.log(math.exp(positive / tau) / denominator))
    if not triplets:
        return 0.0
    return sum(triplets) / len(triplets) + lam * sum(contrasts) / len(contrasts)


def naive(
    image: Tensor, text: Tensor, ids: list[int], k: int, m: float, tau: float, lam: float
) -> float:
    n = len(image)
    rows = [row / row.norm() for row in (*image, *text)]
    anchors = []
    for a in range(2 * n):
        partner = a + n if a < n else a - n
        similar = [
            float(rows[a] @ rows[b])
            for b in range(2 * n)
            if b not in (a, partner) and ids[b % n] != ids[a % n]
        ]
        anchors.append((float(rows[a] @ rows[partner]), sorted(similar, reverse=True)[:k]))
    return naive_core(anchors, m, tau, lam)


def pairs(n: int, dim: int = 5, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    image = torch.randn(n, dim, dtype=dtype)
    return image, 0.5 * image + torch.randn(n, dim, dtype=dtype)


def test_smoke():
    loss = HECTLoss()
    assert loss(*pairs(4)).shape == ()
    assert "temperature=0.5" in repr(loss)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("k", [1, 3, 50])
@pytest.mark.parametrize("shared", [False, True])
def test_naive_loop_reference(n, k, shared):
    image, text = pairs(n)
    ids = [4, 4, 9, 1, 4, 1, 0, 2][:n] if shared else list(range(n))
    numbers = {"margin": 0.7, "temperature": 0.3, "contrastive_weight": 0.4}
    loss = HECTLoss(**numbers, num_hard_negatives=k)
    expected = pytest.approx(naive(image, text, ids, k, 0.7, 0.3, 0.4), abs=1e-12)
    assert loss(image, text, torch.tensor(ids)).item() == expected
    if not shared:
        assert loss(image, text).item() == expected


def test_naive_loop_reference_from_similarities():
    positive = torch.rand(6, dtype=torch.float64) * 2 - 1
    negatives = torch.rand(6, 4, dtype=torch.float64) * 2 - 1
    valid = torch.rand(6, 4) > 0.5
    valid[2] = False
    anchors = [
        (p, [s for s, ok in zip(row, kept, strict=True) if ok])
        for p, row, kept in zip(positive.tolist(), negatives.tolist(), valid.tolist(), strict=True)
    ]
    loss = HECTLoss(margin=0.8).from_similarities
    expected = naive_core(anchors, 0.8, 0.5, 0.5)
    assert loss(positive, negatives, valid).item() == pytest.approx(expected)
    negatives[~valid] = torch.nan  # may hold anything
    assert loss(positive, negatives, valid).item() == pytest.approx(expected)


def test_hardest_negative_of_either_modality_counts():
    axes, loss = torch.eye(4), HECTLoss(contrastive_weight=0)
    apart = loss(axes[[0, 1]], axes[[2, 3]])
    alike = loss(axes[[0, 0]], axes[[2, 3]])  # the images are each other's hardest negative
    assert apart.item() == pytest.approx(1)
    assert alike.item() == pytest.approx(1 + math.sqrt(2) / 2)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_empty_selection_is_zero_with_a_graph(n):
    image, text = (t.requires_grad_() for t in pairs(n))
    loss = HECTLoss()(image, text, torch.zeros(n, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(image.grad, torch.zeros_like(image))
    assert torch.equal(text.grad, torch.zeros_like(text))


@pytest.mark.parametrize("shape", [(0, 2), (3, 0), (3, 2)])
def test_empty_selection_of_similarities(shape):
    positive = torch.rand(shape[0], requires_grad=True)
    negatives = torch.rand(shape, requires_grad=True)
    loss = HECTLoss().from_similarities(positive, negatives, torch.zeros(shape, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert not positive.grad.any()
    assert not negatives.grad.any()


def test_distance_of_identical_vectors_has_no_slope():
    positive = torch.ones(2, requires_grad=True)
    HECTLoss().from_similarities(positive, torch.ones(2, 1)).backward()
    torch.testing.assert_close(positive.grad, torch.full((2,), -0.5))  # of the contrast alone


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=6, max_size=6
        ),
        min_size=1,
        max_size=5,
    )
)
def test_property_finite_for_finite_input(rows):
    vectors = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    loss = hect_loss(vectors[:, :3], vectors[:, 3:], num_hard_negatives=2)
    loss.backward()
    assert loss.isfinite()
    assert not vectors.grad.isnan().any()


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 6), k=st.integers(1, 4), seed=st.integers(0, 99))
def test_property_permutation_scale_and_sides(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    image, text = torch.randn(2, n, 4, generator=generator, dtype=torch.float64)
    ids = torch.randint(4, (n,), generator=generator)
    loss = hect_loss(image, text, ids, num_hard_negatives=k)
    order = torch.randperm(n, generator=generator)
    moved = hect_loss(3 * image[order], text[order] / 7, ids[order], num_hard_negatives=k)
    torch.testing.assert_close(moved, loss)
    torch.testing.assert_close(hect_loss(text, image, ids, num_hard_negatives=k), loss)


def test_gradcheck():
    image, text = (t.requires_grad_() for t in pairs(5))
    ids = torch.tensor([0, 1, 1, 2, 0])
    loss = HECTLoss(num_hard_negatives=3)
    assert torch.autograd.gradcheck(loss, (image, text))
    assert torch.autograd.gradcheck(loss, (image, text, ids))
    assert torch.autograd.gradcheck(HECTLoss(num_hard_negatives=9), (image, text))
    positive = torch.rand(4, dtype=torch.float64, requires_grad=True)
    negatives = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
    assert torch.autograd.gradcheck(loss.from_similarities, (positive, negatives, valid))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_from_similarities(dtype):
    positive, negatives = torch.rand(6).to(dtype), torch.rand(6, 2).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = HECTLoss().from_similarities(positive, negatives)
    assert loss.dtype == torch.float32
    expected = HECTLoss().from_similarities(positive.float(), negatives.float())
    torch.testing.assert_close(loss, expected)


def test_compile():
    loss = HECTLoss(num_hard_negatives=2)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    image, text = pairs(5)
    ids = torch.tensor([0, 1, 1, 2, 0])
    torch.testing.assert_close(compiled(image, text), loss(image, text))
    torch.testing.assert_close(compiled(image, text, ids), loss(image, text, ids))


@pytest.mark.parametrize(
    ("name", "value"),
    [("margin", -1), ("temperature", 0), ("contrastive_weight", -0.5), ("num_hard_negatives", 0)],
)
def test_error_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        HECTLoss(**{name: value})
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        hect_loss(*pairs(3), **{name: value})


def test_error_shapes():
    with pytest.raises(ValueError, match="image, text have"):
        hect_loss(torch.zeros(3, 4), torch.zeros(4, 4))
    with pytest.raises(ValueError, match="image_ids"):
        hect_loss(torch.zeros(3, 4), torch.zeros(3, 4), torch.arange(6))
    with pytest.raises(ValueError, match="positive, negatives"):
        hect_from_similarities(torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="valid"):
        hect_from_similarities(torch.zeros(3), torch.zeros(3, 2), torch.ones(3, 1).bool())
    with pytest.raises(ValueError, match=r"valid.*expected a bool"):
        hect_from_similarities(torch.zeros(3), torch.zeros(3, 2), torch.ones(3, 2))
