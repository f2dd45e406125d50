from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from itmkit.losses import MomentumDistillationLoss
from itmkit.losses.functional import feature_distillation_loss, similarity_distillation_loss


def vectors(count: int, n: int, dim: int = 4) -> list[Tensor]:
    return [torch.randn(n, dim, dtype=torch.float64) for _ in range(count)]


def softmax(values: list[float]) -> list[float]:
    top = max(values)
    exponentials = [math.exp(v - top) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def naive_similarity(
    students: list[Tensor],
    teachers: list[Tensor],
    ids: list[int],
    queues: list[Tensor],
    queue_ids: list[int | None],
    tau: float,
    alpha: float,
) -> float:
    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b / (a.norm() * b.norm()))

    total = 0.0
    for side, other in ((0, 1), (1, 0)):
        candidates = [*teachers[other], *queues[other]]
        candidate_ids = [*ids, *queue_ids]
        for i, own in enumerate(ids):
            soft = softmax([cosine(teachers[side][i], c) / tau for c in candidates])
            same = [float(own == other_id) for other_id in candidate_ids]
            log_student = softmax([cosine(students[side][i], c) / tau for c in candidates])
            for q, y, p in zip(soft, same, log_student, strict=True):
                target = alpha * q + (1 - alpha) * y / sum(same)
                total -= target * math.log(p) / len(ids)
    return total / 2


def naive_feature(students: list[Tensor], teachers: list[Tensor]) -> float:
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        for row, goal in zip(student.tolist(), teacher.tolist(), strict=True):
            for p, q in zip(softmax(row), softmax(goal), strict=True):
                total += q * math.log(q / p) / len(student)
    return total / 2


def test_smoke():
    loss = MomentumDistillationLoss()
    assert loss(*vectors(4, 3)).shape == ()
    assert "alpha=0.4" in repr(loss)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("queued", [None, 0, 3])
def test_naive_loop_reference_similarity(n, shared, queued):
    image, text, teacher_image, teacher_text = vectors(4, n)
    queues = vectors(2, queued or 0)
    ids = [3, 3, 8, 0, 8][:n] if shared else list(range(n))
    queue_ids = [8, 77, 3][: queued or 0] if shared else [None] * (queued or 0)
    arguments = {}
    if shared:
        arguments["image_ids"] = torch.tensor(ids)
    if queued is not None:
        arguments |= {"queue_image": queues[0], "queue_text": queues[1]}
        if shared:
            arguments["queue_ids"] = torch.tensor(queue_ids, dtype=torch.long)
    loss = MomentumDistillationLoss(temperature=0.2, alpha=0.3)
    value = loss(image, text, teacher_image, teacher_text, **arguments)
    teachers = [teacher_image, teacher_text]
    expected = naive_similarity([image, text], teachers, ids, queues, queue_ids, 0.2, 0.3)
    assert value.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_naive_loop_reference_feature(n):
    image, text, teacher_image, teacher_text = vectors(4, n)
    loss = MomentumDistillationLoss(similarity_weight=0, feature_weight=2.0)
    value = loss(image, text, teacher_image, teacher_text)
    expected = 2 * naive_feature([image, text], [teacher_image, teacher_text])
    assert value.item() == pytest.approx(expected)


def test_parts_are_weighted():
    four = vectors(4, 3)
    loss = MomentumDistillationLoss(similarity_weight=0.5, feature_weight=3.0)
    expected = 0.5 * similarity_distillation_loss(*four) + 3 * feature_distillation_loss(*four)
    torch.testing.assert_close(loss(*four), expected)


def test_alpha_zero_is_contrastive_learning():
    image, text, teacher_image, teacher_text = vectors(4, 5)
    loss = similarity_distillation_loss(image, text, teacher_image, teacher_text, alpha=0)
    unit = [torch.nn.functional.normalize(v) for v in (image, text, teacher_image, teacher_text)]
    goal = torch.arange(5)
    cross_entropy = torch.nn.functional.cross_entropy
    expected = cross_entropy(unit[0] @ unit[3].T / 0.07, goal)
    expected += cross_entropy(unit[1] @ unit[2].T / 0.07, goal)
    torch.testing.assert_close(loss, expected / 2)


def test_teacher_and_queue_get_no_gradient():
    image, text, *others = (v.requires_grad_() for v in vectors(6, 3))
    loss = MomentumDistillationLoss(feature_weight=1.0)
    loss(image, text, *others[:2], None, *others[2:]).backward()
    assert image.grad.any()
    assert text.grad.any()
    assert all(v.grad is None for v in others)


@pytest.mark.parametrize("weights", [(1, 0), (0, 1), (1, 1), (0, 0)])
def test_empty_selection_is_zero_with_a_graph(weights):
    image, text, *teachers = (v.requires_grad_() for v in vectors(4, 0))
    loss = MomentumDistillationLoss(similarity_weight=weights[0], feature_weight=weights[1])
    value = loss(image, text, *teachers)
    value.backward()
    assert value.item() == 0
    assert image.grad is not None


def test_same_features_cost_nothing():
    image, text = vectors(2, 4)
    assert feature_distillation_loss(image, text, image, text).item() == pytest.approx(0, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8, max_size=8
        ),
        min_size=1,
        max_size=4,
    )
)
def test_property_no_nan_for_finite_input(rows):
    four = torch.tensor(rows, dtype=torch.float32, requires_grad=True)
    loss = MomentumDistillationLoss(feature_weight=1.0)(*four.chunk(4, dim=1))
    loss.backward()
    assert not loss.isnan()
    assert not four.grad.isnan().any()


@settings(deadline=None, max_examples=25)
@given(n=st.integers(1, 5), queued=st.integers(0, 4), seed=st.integers(0, 99))
def test_property_permutation(n, queued, seed):
    generator = torch.Generator().manual_seed(seed)
    four = torch.randn(4, n, 3, generator=generator, dtype=torch.float64)
    queues = torch.randn(2, queued, 3, generator=generator, dtype=torch.float64)
    ids = torch.randint(3, (n,), generator=generator)
    queue_ids = torch.randint(3, (queued,), generator=generator)
    loss = MomentumDistillationLoss(feature_weight=0.5)
    value = loss(*four, ids, *queues, queue_ids)
    rows = torch.randperm(n, generator=generator)
    places = torch.randperm(queued, generator=generator)
    shuffled = loss(*four[:, rows], ids[rows], *queues[:, places], queue_ids[places])
    torch.testing.assert_close(shuffled, value)
    image, text, teacher_image, teacher_text = four
    swapped = loss(text, image, teacher_text, teacher_image, ids, *queues.flip(0), queue_ids)
    torch.testing.assert_close(swapped, value)
    assert feature_distillation_loss(*four) >= 0


def test_gradcheck():
    image, text, *teachers = vectors(4, 5)
    queues = vectors(2, 3)
    ids, queue_ids = torch.tensor([0, 1, 1, 2, 0]), torch.tensor([1, 5, 6])
    loss = MomentumDistillationLoss(feature_weight=0.5)
    inputs = (image.requires_grad_(), text.requires_grad_(), *teachers, ids, *queues, queue_ids)
    assert torch.autograd.gradcheck(loss, inputs)


def test_half_precision_student_of_a_float32_teacher():
    image, text, *teachers = (v.float() for v in vectors(4, 5))
    value = MomentumDistillationLoss(feature_weight=1.0)(image.half(), text.half(), *teachers)
    assert value.dtype == torch.float32


def test_compile():
    loss = MomentumDistillationLoss(feature_weight=1.0)
    compiled = torch.compile(loss, fullgraph=True, backend="eager")
    four, queues = vectors(4, 5), vectors(2, 3)
    ids = torch.tensor([0, 1, 1, 2, 0])
    torch.testing.assert_close(compiled(*four), loss(*four))
    torch.testing.assert_close(compiled(*four, ids, *queues), loss(*four, ids, *queues))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0), ("alpha", 1.5), ("similarity_weight", -1), ("feature_weight", -1)],
)
def test_error_numbers(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        MomentumDistillationLoss(**{name: value})


@pytest.mark.parametrize("weights", [(1, 0), (0, 1), (0, 0)])
def test_error_shapes(weights):
    """Of whatever is given, also where its part has no weight."""
    four, queues = vectors(4, 3), vectors(2, 2)
    loss = MomentumDistillationLoss(similarity_weight=weights[0], feature_weight=weights[1])
    with pytest.raises(ValueError, match="image, text, teacher_image, teacher_text have"):
        loss(*four[:3], torch.zeros(2, 4))
    with pytest.raises(ValueError, match="image_ids"):
        loss(*four, torch.arange(2))
    with pytest.raises(ValueError, match=r"queue_text is None; expected both"):
        loss(*four, None, queues[0])
    with pytest.raises(ValueError, match="queue_text"):
        loss(*four, None, queues[0], torch.zeros(3, 4))
    with pytest.raises(ValueError, match="queue_ids"):
        loss(*four, None, *queues, torch.arange(2))
    with pytest.raises(ValueError, match="queue_ids"):
        loss(*four, torch.arange(3), *queues, torch.arange(3))
