from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from itmkit.data.relations import box_relations


def random_boxes(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    low, high = torch.rand(2, *shape, 2, generator=generator).sort(0).values
    return torch.cat([low, high], dim=-1)


def naive(boxes: Tensor, threshold: float | None) -> list[list[float]]:
    """The relations of ``(N, 4)`` boxes."""
    rows = boxes.tolist()
    relations = []
    for i, (left, top, right, bottom) in enumerate(rows):
        relations.append([])
        for j, (other_left, other_top, other_right, other_bottom) in enumerate(rows):
            width = min(right, other_right) - max(left, other_left)
            height = min(bottom, other_bottom) - max(top, other_top)
            common = width * height if width > 0 and height > 0 else 0.0
            area = (right - left) * (bottom - top)
            other_area = (other_right - other_left) * (other_bottom - other_top)
            union = area + other_area - common
            iou = 1.0 if i == j else common / union if union > 0 else 0.0
            relations[-1].append(iou if threshold is None else float(iou >= threshold))
    return relations


@pytest.mark.parametrize("threshold", [None, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_naive_loop_reference(threshold: float | None, scale: float) -> None:
    boxes = scale * random_boxes(3, 2, 7, generator=torch.Generator().manual_seed(0))
    relations = box_relations(boxes, threshold)
    assert relations.dtype == torch.float32
    assert relations.shape == (3, 2, 7, 7)
    for a in range(3):
        for b in range(2):
            expected = torch.tensor(naive(boxes[a, b], threshold))
            torch.testing.assert_close(relations[a, b], expected)
    if threshold == 0.2:
        assert 0 < relations.mean() < 1


def test_a_threshold_that_is_met_counts() -> None:
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5], [0.5, 0.0, 1.5, 1.0]])
    assert box_relations(boxes, None)[0, 1] == 0.5
    assert box_relations(boxes, 0.5).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_boxes_without_area_and_boxes_that_touch() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0.0, 1.0, 1.0],
            [0.5, 0.5, 0.5, 0.5],  # a point within it
            [0.5, 0.5, 0.5, 0.5],  # the same point
            [0.2, 0.0, 0.2, 1.0],  # a line within it
            [1.0, 0.0, 2.0, 1.0],  # beside it
        ]
    )
    assert torch.equal(box_relations(boxes, None), torch.eye(5))
    assert torch.equal(box_relations(boxes), torch.eye(5))
    assert torch.equal(box_relations(torch.zeros(3, 4)), torch.eye(3))


def test_equal_boxes_are_one_and_nothing_is_more() -> None:
    boxes = random_boxes(50, generator=torch.Generator().manual_seed(1))
    boxes = torch.cat([boxes, boxes, boxes * (1 - 1e-7)])
    relations = box_relations(boxes, None)
    assert (relations[:50, 50:100].diagonal() == 1).all()
    assert relations.max() == 1
    assert relations.min() >= 0
    assert torch.equal(relations, relations.T)


@pytest.mark.parametrize("scale", [1e-30, 1e38])
def test_no_nan_at_extreme_sizes(scale: float) -> None:
    boxes = random_boxes(9, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(box_relations(scale * boxes, None), box_relations(boxes, None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_other_types_give_float32(dtype: torch.dtype) -> None:
    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 1]]).to(dtype)
    relations = box_relations(boxes, None)
    assert relations.dtype == torch.float32
    assert relations.tolist() == [[1, 0.5], [0.5, 1]]


def test_padding_and_neighbours_change_nothing() -> None:
    boxes = random_boxes(2, 4)
    alone = box_relations(boxes[0])
    assert torch.equal(box_relations(boxes)[0], alone)
    padded = torch.cat([boxes[0], torch.zeros(3, 4)])
    assert torch.equal(box_relations(padded)[:4, :4], alone)


def test_no_boxes() -> None:
    assert box_relations(torch.zeros(0, 4)).shape == (0, 0)
    assert box_relations(torch.zeros(2, 0, 4)).shape == (2, 0, 0)


@pytest.mark.parametrize(
    ("boxes", "threshold", "message"),
    [
        (torch.zeros(4), 0.2, "boxes have the shape (4,); expected (..., N, 4)"),
        (torch.zeros(2, 5), 0.2, "boxes have the shape (2, 5); expected (..., N, 4)"),
        (torch.tensor([[0.5, 0.0, 0.4, 1.0]]), 0.2, "a box with x2 < x1"),
        (torch.tensor([[0.0, 0.0, 1.0, float("nan")]]), 0.2, "a corner that is not finite"),
        (torch.tensor([[0.0, 0.0, 1.0, float("inf")]]), 0.2, "a corner that is not finite"),
        (torch.zeros(2, 4), 0.0, "threshold is 0.0; expected a number in (0, 1], or None"),
        (torch.zeros(2, 4), 1.1, "threshold is 1.1; expected"),
        (torch.zeros(2, 4), float("nan"), "threshold is nan; expected"),
    ],
)
def test_error(boxes: Tensor, threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        box_relations(boxes, threshold)
