from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from itmkit.data.collate import collate_images
from itmkit.data.dataset import Regions


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
