from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch

from itmkit.data.batch import Images
from itmkit.data.captions import Captions
from itmkit.data.dataset import CaptionedImages, ImageTextDataset
from itmkit.data.images import ImageSource
from itmkit.data.module import ImageTextData
from itmkit.data.preprocessing import Preprocessing


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


class Numbers(ImageSource):
    """Images of one number, read together ten times as large as alone."""

    names = ("a", "b", "c")

    def image(self, row: int) -> torch.Tensor:
        return torch.full((3, 2, 2), float(row))

    def read(self, rows: Sequence[int], seeds: Sequence[int] | None = None) -> Images:
        return Images(10 * super().read(rows).features)


CAPTIONS = Captions("val", list("abc"), list("uvw"), [0, 1, 2])


def test_images_are_read_together_or_one_by_one() -> None:
    class Negative(CaptionedImages):
        def image(self, row: int) -> torch.Tensor:
            return -super().image(row)

    class Own(Blank):
        def image(self, row: int) -> torch.Tensor:
            return torch.full((3, 2, 2), 7.0 + row)

    def first(data: ImageTextDataset) -> list[float]:
        return data.source.read([2, 0]).features.flatten(1)[:, 0].tolist()

    assert first(Own("val", list("abc"), list("uvw"), [0, 1, 2])) == [9, 7]
    assert first(CaptionedImages(CAPTIONS, Numbers())) == [20, 0]
    assert first(Negative(CAPTIONS, Numbers())) == [-2, 0]  # a subclass's own images count


def test_each_image_is_drawn_from_its_seed() -> None:
    class Drawn(Numbers):
        def image(self, row: int) -> torch.Tensor:
            return row + torch.rand(3, 2, 2)

        read = ImageSource.read

    state = torch.get_rng_state()
    images = Drawn().read([2, 0, 2], [5, 6, 5]).features
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], Drawn().drawn(0, 6))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(Drawn().read([2]).features, Drawn().read([2]).features)


def test_pixels_in_bytes_become_floats() -> None:
    source = Numbers()
    pixels = torch.randint(256, (4, 3, 5, 6), dtype=torch.uint8)
    assert torch.equal(source.as_floats(pixels), pixels / 255)
    source.preprocessing = own = Preprocessing(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    mean, std = (torch.tensor(each)[:, None, None] for each in (own.mean, own.std))
    assert torch.equal(source.as_floats(pixels), (pixels / 255 - mean) / std)
    assert source.as_floats(pixels.half()).dtype == torch.float16

    class Bytes(Blank):
        def image(self, row: int) -> torch.Tensor:
            return torch.full((3, 2, 2), 51, dtype=torch.uint8)

    data = ImageTextData(lambda split: Bytes(split, ["a"], ["u"], [0]), vocabulary_min_count=1)
    (batch,) = data.val_dataloader()
    assert torch.equal(batch.images.features, torch.full((1, 3, 2, 2), 0.2))


@pytest.mark.parametrize(
    ("names", "message"),
    [("ab", "images has 2 images; expected the 3 names"), ("acb", "images has 'c' for another")],
)
def test_error_of_images_that_are_not_those_of_the_captions(names: str, message: str) -> None:
    source = Numbers()
    source.names = list(names)
    with pytest.raises(ValueError, match=message):
        CaptionedImages(CAPTIONS, source)


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
