from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch

from itmkit.data.batch import Images
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


def test_images_are_read_together_or_one_by_one() -> None:
    class Numbered(Blank):
        def image(self, row: int) -> torch.Tensor:
            return torch.full((3, 2, 2), float(row))

    class Together(Blank):
        def read_images(self, rows: Sequence[int]) -> Images:
            return Images(torch.tensor(rows)[:, None] * 10.0)

    class Other(Together):
        def image(self, row: int) -> torch.Tensor:
            return torch.full((3, 2, 2), -float(row))

    def first(kind: type[Blank]) -> list[float]:
        images = kind("val", list("abc"), ["u"], [0]).read_images([2, 0])
        return images.features.flatten(1)[:, 0].tolist()

    assert first(Numbered) == [2, 0]
    assert first(Together) == [20, 0]
    assert first(Other) == [-2, 0]  # a subclass that gives other images is asked for them


def test_images_without_captions() -> None:
    none = Blank("val", ["a", "b"], None)
    assert (len(none), none.captions, none.captions_of(1)) == (2, [], [])
    with pytest.warns(UserWarning, match="2 of the 3 images of the split 'val' have no captions"):
        some = Blank("val", ["a", "b", "c"], ["u", "v"], [1, 1])
    assert [some.captions_of(row) for row in range(3)] == [[], [0, 1], []]


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
