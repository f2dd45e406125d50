"""Training captions at images that they do not describe."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_cli import run

from itmkit.checks import InputError
from itmkit.data import ImageTextData, ShapesDataset, SwappedCaptions

SHAPES = partial(ShapesDataset, length=60)


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 1.0])
def test_so_many_captions_are_false_and_the_others_as_they_were(rate: float) -> None:
    shapes = SHAPES("train")
    noisy = SwappedCaptions(shapes, rate=rate, seed=3)
    assert len(noisy.swapped) == round(rate * 300)
    rows = torch.arange(300)
    true = shapes.relevance(noisy.caption_images, rows).diagonal()
    assert (~true).nonzero()[:, 0].tolist() == noisy.swapped.tolist()
    moved = noisy.caption_images != shapes.caption_images
    assert moved.nonzero()[:, 0].tolist() == noisy.swapped.tolist()
    assert noisy.caption_images.bincount().tolist() == [5] * 60
    assert (noisy.captions, noisy.names) == (shapes.captions, shapes.names)
    assert noisy.image(7).equal(shapes.image(7))
    assert noisy.vocabulary is shapes.vocabulary
    # Where a model is trained, what is swapped counts as true.
    assert noisy.relevance(noisy.caption_images, rows).diagonal().all()


def test_what_is_true_of_other_images_is_dealt_again() -> None:
    """Siblings share sentences: a mere shuffle of all captions would leave some true."""
    shapes = ShapesDataset("train", length=8)
    shuffled = [
        shapes.relevance(shapes.caption_images[torch.randperm(40)], torch.arange(40)).diagonal()
        for _ in range(5)
    ]
    assert any(true.any() for true in shuffled)
    assert len(SwappedCaptions(shapes, rate=1.0).swapped) == 40


def test_the_swaps_follow_from_the_seed_alone() -> None:
    first = SwappedCaptions(SHAPES("train"), rate=0.3)
    torch.manual_seed(77)
    again = SwappedCaptions(SHAPES("train"), rate=0.3)
    assert again.caption_images.equal(first.caption_images)
    other = SwappedCaptions(SHAPES("train"), rate=0.3, seed=1)
    assert not other.caption_images.equal(first.caption_images)


def test_data_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean, noisy, other = (
        ImageTextData(SHAPES, batch_size=20, noise_rate=rate, noise_seed=seed)
        for rate, seed in ((0.0, 0), (0.2, 0), (0.2, 1))
    )
    assert clean.write_swapped(tmp_path) is None
    path = noisy.write_swapped(tmp_path)
    assert path is not None
    train = noisy.split("train")
    assert isinstance(train, SwappedCaptions)
    rows = list(csv.DictReader(path.open(newline="")))
    shapes = clean.split("train")
    for row, caption in zip(rows, train.swapped.tolist(), strict=True):
        assert row["caption"] == shapes.captions[caption]
        assert row["own_image"] == shapes.names[int(shapes.caption_images[caption])]
        assert row["image"] == shapes.names[int(train.caption_images[caption])]
    for batch in noisy.train_dataloader():
        assert batch.image_ids.tolist() == train.caption_images[batch.text_ids].tolist()
    for name in ("val", "test"):
        assert noisy.split(name).caption_images.equal(clean.split(name).caption_images)
    for data in (clean, noisy, other):
        data.setup("fit")
    prints = [data.fingerprints() for data in (clean, noisy, other)]
    assert len({one["train"] for one in prints}) == 3
    assert len({one["val"] for one in prints}) == 1
    # Without what the list names, training is on true captions.
    without = ImageTextData(SHAPES, batch_size=20, noise_rate=0.2, exclude=path)
    kept = without.training_captions
    assert set(kept.tolist()) == set(range(300)) - set(train.swapped.tolist())
    assert "excluded from training: 60 of 300 captions" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_folder")
def test_fit_lists_the_swaps_and_resumes_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.noise_rate=0.5", "--data.noise_seed=2"]
    first = run("fit", *options, "--trainer.max_epochs=1")
    assert f"captions at images of others: {first}" in capsys.readouterr().out
    swaps = (first / "swapped_captions.csv").read_text()
    assert len(swaps.splitlines()) == 3
    resumed = run("fit", *options, f"--ckpt_path={first}", "--trainer.max_epochs=2")
    assert (resumed / "swapped_captions.csv").read_text() == swaps
    assert not (run("fit", "--trainer.max_epochs=1") / "swapped_captions.csv").exists()
    with pytest.warns(UserWarning, match="was trained on other images or captions"):
        run("fit", "--data.noise_rate=0.0", f"--ckpt_path={first}", "--trainer.max_epochs=2")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise_rate": 1.5}, "noise_rate is 1.5; expected"),
        ({"noise_rate": 0.1, "noise_seed": -1}, "noise_seed is -1"),
        ({"noise_rate": 0.1, "val_split": "train"}, "train_split is evaluated too"),
    ],
)
def test_error(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageTextData(SHAPES, **options)


def test_one_caption_cannot_change_places() -> None:
    with pytest.raises(
        InputError, match=r"noise_rate chooses 1 of the 10 captions of the split 't"
    ):
        SwappedCaptions(ShapesDataset("train", length=2), rate=0.1)
