from __future__ import annotations

from itmkit.data import ImageTextDataset, Preprocessing, ShapesDataset
from itmkit.data.splits import Splits


def shapes(split: str, length: int = 4) -> ShapesDataset:
    return ShapesDataset(split, length=length)


def as_it_is(dataset: ImageTextDataset) -> ImageTextDataset:
    return dataset


def test_a_split_is_made_once_and_served() -> None:
    made: list[str] = []

    def make(split: str) -> ImageTextDataset:
        made.append(split)
        return shapes(split)

    splits = Splits(make, lambda dataset: shapes(dataset.split, len(dataset) + 1))
    assert not splits
    assert splits.open("val") is splits.open("val")
    assert len(splits["val"]) == 5
    assert (made, list(splits)) == (["val"], ["val"])


def test_a_fingerprint_is_of_names_and_captions() -> None:
    def fingerprint(split: str, length: int) -> str:
        splits = Splits(lambda name: shapes(name, length), as_it_is)
        splits.open(split)
        return splits.fingerprint(split)

    assert fingerprint("train", 4) == fingerprint("train", 4)
    assert len({fingerprint("train", 4), fingerprint("train", 5), fingerprint("val", 4)}) == 3


def test_the_preprocessing_is_of_one_split_before_others() -> None:
    sizes = {"train": 32, "val": 64, "test": None}

    def make(split: str) -> ImageTextDataset:
        dataset = shapes(split)
        size = sizes[split]
        dataset.preprocessing = None if size is None else Preprocessing(size)
        return dataset

    splits = Splits(make, as_it_is)
    for name, expected in (("test", None), ("val", 64), ("train", 32)):
        splits.open(name)
        found = splits.preprocessing("train")
        assert (found and found.size) == expected
