from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from itmkit.checks import InputError
from itmkit.data.images import Regions, collate_images, without_regions
from itmkit.data.relations import box_relations


def test_shape_of_pixels() -> None:
    images = [torch.rand(3, 5, 6) for _ in range(4)]
    stack = collate_images(images)
    assert torch.equal(stack.features, torch.stack(images))
    assert stack.mask is None
    assert stack.boxes is None
    assert len(stack) == 4


def test_shape_of_equal_regions_needs_no_mask() -> None:
    stack = collate_images([Regions(torch.rand(3, 5), torch.rand(3, 4)) for _ in range(2)])
    assert stack.features.shape == (2, 3, 5)
    assert stack.mask is None
    assert stack.boxes is not None
    assert stack.boxes.shape == (2, 3, 4)


def test_naive_loop_reference_of_padded_regions() -> None:
    counts = [2, 5, 1]
    regions = [Regions(torch.rand(n, 6), torch.rand(n, 4)) for n in counts]
    stack = collate_images(regions)
    assert stack.mask is not None
    assert stack.boxes is not None
    for i, (count, region) in enumerate(zip(counts, regions, strict=True)):
        assert stack.mask[i].tolist() == [n < count for n in range(5)]
        assert torch.equal(stack.features[i, :count], region.features)
        assert not stack.features[i, count:].any()
        assert region.boxes is not None
        assert torch.equal(stack.boxes[i, :count], region.boxes)


def corners(count: int) -> Tensor:
    low, high = torch.rand(2, count, 2).sort(0).values
    return torch.cat([low, high], dim=-1)


@pytest.mark.parametrize("threshold", [0.2, 0.5])
@pytest.mark.parametrize("counts", [[2, 5, 1], [3, 3]])
def test_relations_follow_from_boxes(counts: list[int], threshold: float) -> None:
    regions = [Regions(torch.rand(n, 6), corners(n)) for n in counts]
    assert collate_images(regions).relations is None
    relations = collate_images(regions, relation_threshold=threshold).relations
    assert relations is not None
    assert relations.shape == (len(counts), max(counts), max(counts))
    for own, count, region in zip(relations, counts, regions, strict=True):
        assert region.boxes is not None
        assert torch.equal(own[:count, :count], box_relations(region.boxes, threshold))
        assert not own[count:].any()
        assert not own[:, count:].any()


def test_relations_of_the_dataset_come_before_boxes() -> None:
    counts = [2, 4]
    regions = [Regions(torch.rand(n, 6), corners(n), torch.rand(n, n)) for n in counts]
    as_they_are = collate_images(regions).relations
    binary = collate_images(regions, relation_threshold=0.5).relations
    assert as_they_are is not None
    assert binary is not None
    assert as_they_are.shape == binary.shape == (2, 4, 4)
    for i, (count, region) in enumerate(zip(counts, regions, strict=True)):
        assert region.relations is not None
        for a in range(4):
            for b in range(4):
                inside = a < count and b < count
                value = float(region.relations[a, b]) if inside else 0.0
                assert float(as_they_are[i, a, b]) == value
                assert float(binary[i, a, b]) == float(value >= 0.5)


def test_error_of_relations() -> None:
    square = Regions(torch.rand(2, 3), None, torch.eye(2))
    with pytest.raises(ValueError, match="1 of 2 images have relations; expected all or none"):
        collate_images([square, Regions(torch.rand(2, 3))])
    with pytest.raises(ValueError, match=re.escape("have the shape (3, 3); expected (2, 2)")):
        collate_images([square, Regions(torch.rand(2, 3), None, torch.eye(3))])


@pytest.mark.parametrize(
    ("image", "kind"),
    [(Regions(torch.rand(2, 3)), "features without boxes"), (torch.rand(3, 4, 4), "pixels")],
)
def test_error_of_a_threshold_without_boxes(image: Tensor | Regions, kind: str) -> None:
    message = (
        f"relation_threshold is 0.2, but the images are {kind}; expected regions with boxes: "
        "ShapesDataset(regions=True), PrecompDataset with {split}_boxes.npy, or features of "
        "itmkit extract"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        collate_images([image, image], relation_threshold=0.2)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "of the kinds []"),
        ([torch.rand(3, 2, 2), Regions(torch.rand(1, 2))], "['Regions', 'Tensor']"),
        ([torch.rand(3, 2, 2), torch.rand(3, 2, 4)], "pixels of the sizes"),
        ([Regions(torch.rand(1, 2)), Regions(torch.rand(1, 3))], "features of the widths"),
        ([Regions(torch.rand(1, 2), torch.rand(1, 4)), Regions(torch.rand(1, 2))], "1 of 2 images"),
    ],
)
def test_error(images: list[Tensor | Regions], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        collate_images(images)


def test_regions_are_left_out_by_a_seed_of_each_image() -> None:
    """What is left of an image is some of its regions, in order, with their relations."""
    counts = [5, 2, 1]
    squares = [torch.rand(n, n) for n in counts]
    parts = [
        Regions(torch.rand(n, 6), torch.rand(n, 4), own)
        for n, own in zip(counts, squares, strict=True)
    ]
    whole = collate_images(parts)
    fewer = without_regions(whole, 0.5, [7, 8, 9])
    assert fewer.mask is not None
    assert fewer.mask.sum(1).tolist() == [3, 1, 1]
    for i, left in enumerate([3, 1, 1]):
        found, own = fewer.features[i, :left], whole.features[i, : counts[i]]
        rows = (found[:, None] == own).all(-1).int().argmax(1)
        assert torch.equal(own[rows], found)
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert not fewer.features[i, left:].any()
        assert torch.equal(fewer.boxes[i, :left], whole.boxes[i, rows])
        assert torch.equal(fewer.relations[i, :left, :left], squares[i][rows][:, rows])
    alone = without_regions(collate_images(parts[1:2]), 0.5, [8])
    assert torch.equal(alone.features[0], fewer.features[1, :1])  # whatever is in the batch
    drawn = {without_regions(whole, 0.5, [seed, 8, 9]).features[0].sum() for seed in range(20)}
    assert len(drawn) > 5


def test_equal_regions_need_no_mask_where_some_are_left_out() -> None:
    whole = collate_images([Regions(torch.rand(49, 5)) for _ in range(2)])
    assert without_regions(whole, 0.5, [1, 2]).features.shape == (2, 25, 5)
    assert without_regions(whole, 0.5, [1, 2]).mask is None


def test_error_of_pixels_without_regions() -> None:
    pixels = collate_images([torch.rand(3, 5, 6)])
    with pytest.raises(InputError, match=r"region_drop is 0\.5, but the images are pixels"):
        without_regions(pixels, 0.5, [1])
