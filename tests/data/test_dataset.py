from __future__ import annotations

import re

import pytest
import torch

from itmkit.data.dataset import ImageTextDataset


class Blank(ImageTextDataset):
    def image(self, row: int) -> torch.Tensor:
        return torch.zeros(3, 2, 2)


def test_naive_loop_reference_of_captions_and_relevance() -> None:
    rows = [2, 0, 2, 3, 0, 2]  # image 1 has none; the captions of an image are not adjacent
    data = Blank("train", list("abcd"), list("uvwxyz"), rows)
    for image in range(4):
        expected = [caption for caption, row in enumerate(rows) if row == image]
        assert data.captions_of(image) == expected
        assert data[image][1] == ["uvwxyz"[caption] for caption in expected]
    images, captions = torch.tensor([3, 2, 0]), torch.tensor([0, 3, 4, 5, 1])
    relevance = data.relevance(images, captions)
    assert relevance.dtype == torch.bool
    assert relevance.tolist() == [[rows[c] == i for c in captions.tolist()] for i in [3, 2, 0]]


@pytest.mark.parametrize(
    ("names", "captions", "rows", "message"),
    [
        ([], [], [], "split 'val' has no images"),
        (["a"], [], [], "split 'val' has no captions"),
        (["a"], ["u", "v"], [0], "caption_images has shape (1,); expected (2,)"),
        (["a"], ["u"], [1], "caption_images goes from 1 to 1; expected rows of the 1 images"),
        (["a"], ["u"], [-1], "caption_images goes from -1 to -1"),
    ],
)
def test_error(names: list[str], captions: list[str], rows: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Blank("val", names, captions, rows)
