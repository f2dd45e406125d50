"""What a list excludes is left out of training, and of nothing else."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest
import torch

from itmkit.checks import InputError
from itmkit.data import ImageTextData, ShapesDataset
from itmkit.data.exclusion import kept_captions

DATASET = partial(ShapesDataset, length=8)
TRAIN = DATASET("train")


def write(path: Path, *rows: tuple[str, str]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows])
    return path


@pytest.fixture
def exclude(tmp_path: Path) -> Path:
    """Two captions of the first image, and the third image."""
    captions = TRAIN.captions
    rows = [("train-0", captions[1]), ("train-0", captions[3]), ("train-2", "")]
    return write(tmp_path / "exclude.csv", *rows)


LEFT = [0, 2, 4, *range(5, 10), *range(15, 40)]


def test_rows_that_are_kept(exclude: Path) -> None:
    assert kept_captions(TRAIN, exclude).tolist() == LEFT
    assert kept_captions(TRAIN, None).tolist() == list(range(40))


@pytest.mark.parametrize("bucket_batches", [0, 3])
def test_an_epoch_has_the_others(
    exclude: Path, bucket_batches: int, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ImageTextData(
        DATASET,
        batch_size=11,
        caption_views=4,
        distinct_captions=True,
        exclude=exclude,
        bucket_batches=bucket_batches,
        val_split="train",
    )
    data.setup("fit")
    assert "excluded from training: 7 of 40 captions, 1 of 8 images" in capsys.readouterr().err
    batches = list(data.train_dataloader())
    firsts = torch.cat([batch.text_ids[::4] for batch in batches])
    assert sorted(firsts.tolist()) == LEFT
    assert set(torch.cat([batch.text_ids for batch in batches]).tolist()) == set(LEFT)
    assert data.sizes() == {"train": {"images": 7, "captions": 33}}
    data.split("test")
    assert data.sizes()["test"] == {"images": 8, "captions": 40}
    for batch in batches:
        assert torch.equal(batch.image_ids, TRAIN.caption_images[batch.text_ids[::4]])
    assert sum(len(batch.text_ids) for batch in data.val_dataloader()) == 40


def test_randomness_is_that_of_the_caption(exclude: Path) -> None:
    views = {}
    for given in (None, exclude):
        data = ImageTextData(DATASET, batch_size=1, exclude=given)
        for batch in data.train_dataloader():
            views[given, int(batch.text_ids[0])] = batch.texts.ids
    for row in LEFT:
        assert torch.equal(views[None, row], views[exclude, row])


def test_vocabulary_and_fingerprint_follow(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    write(path, ("train-0", ""))

    class NoWords(ShapesDataset):
        vocabulary = None  # type: ignore[assignment]

    def make(exclude: Path | None) -> ImageTextData:
        data = ImageTextData(partial(NoWords, length=2), vocabulary_min_count=1, exclude=exclude)
        data.split("train")
        return data

    assert make(None).vocabulary_size > make(path).vocabulary_size
    assert make(None).fingerprints() != make(path).fingerprints()
    assert make(path).fingerprints() == make(path).fingerprints()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("train-9", ""), "line 2 has the image 'train-9'; expected one of the 8 images"),
        (("train-1", "a dog"), "line 2 has the caption 'a dog'; expected one of the image"),
    ],
)
def test_what_is_not_there(tmp_path: Path, row: tuple[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        kept_captions(TRAIN, write(tmp_path / "a.csv", row))


def test_all_excluded(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", *((name, "") for name in TRAIN.names))
    with pytest.raises(InputError, match="excludes all 40 captions"):
        kept_captions(TRAIN, path)
