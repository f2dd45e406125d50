"""Faults that were put into a dataset are found, and the list of them leaves them out."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import pytest
import torch
from quiet_trainer import quiet_trainer
from tiny_matcher import TinyMatcher
from torch import Tensor

from itmkit.cli import main
from itmkit.data import ImageTextData, ShapesDataset, Vocabulary, WordTokenizer
from itmkit.data.dataset import ImageTextDataset
from itmkit.data.table import read_table, write_table
from itmkit.data.tokenizer import CaptionTokens
from itmkit.data_audit import audit_data, caption_statistics, duplicate_images, rank_mismatches
from itmkit.systems import Matcher

COLOURS = torch.eye(3)
WORDS = ("red", "green", "blue")
IMAGES = 60


class Fields(ImageTextDataset):
    """Plain colours with two captions, of which every fifth is of another colour."""

    def __init__(self, split: str) -> None:
        colours = [row % 3 for row in range(IMAGES)]
        own = [row // 2 for row in range(2 * IMAGES)]
        self.swapped = [split == "train" and caption % 5 == 0 for caption in range(2 * IMAGES)]
        said = [WORDS[(colours[i] + swap) % 3] for i, swap in zip(own, self.swapped, strict=True)]
        captions = [f"a {word} field" for word in said]
        super().__init__(split, [f"{split}-{i}.jpg" for i in range(IMAGES)], captions, own)

    def image(self, row: int) -> Tensor:
        noise = torch.Generator().manual_seed(row + 1000 * len(self.split))
        return COLOURS[row % 3][:, None, None] + 0.1 * torch.rand(3, 8, 8, generator=noise)


def make(exclude: Path | None = None) -> ImageTextData:
    return ImageTextData(Fields, batch_size=15, vocabulary_min_count=1, exclude=exclude)


def average_precision(hits: list[bool]) -> float:
    found = torch.tensor(hits).double()
    precision = found.cumsum(0) / torch.arange(1, len(found) + 1)
    return float((precision * found).sum() / found.sum())


def fitting(folder: Path, lists: list[Path]) -> tuple[Matcher, ImageTextData]:
    torch.manual_seed(0)
    model = TinyMatcher()
    model.optimizer = lambda groups: torch.optim.Adam(groups, lr=0.05)
    trainer = quiet_trainer(folder, max_steps=100, limit_val_batches=0)
    data = make(lists[-1])
    trainer.fit(model, datamodule=data)
    return model, data


def test_swapped_captions_come_first(tmp_path: Path) -> None:
    lists: list[Path] = []

    def fit(exclude: Path) -> tuple[Matcher, ImageTextData]:
        lists.append(exclude)
        return fitting(tmp_path, lists)

    data = make()
    said: list[str] = []
    options = {"cost": "two fits", "report": said.append, "threshold": 1.0}  # colours are alike
    path = audit_data(data, tmp_path / "out", fit=fit, **options)  # type: ignore[arg-type]
    assert said.index("mismatches: two fits") < len(said) - 1
    train = data.split("train")
    with (tmp_path / "out/mismatches.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * IMAGES
    swapped = {
        (train.names[caption // 2], train.captions[caption])
        for caption in range(2 * IMAGES)
        if train.swapped[caption]  # type: ignore[attr-defined]
    }
    assert average_precision([(row["image"], row["caption"]) in swapped for row in rows]) >= 0.9
    halves = [set(kept.training_captions.tolist()) for kept in map(make, lists)]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == set(range(2 * IMAGES))
    left = make(path).training_captions.tolist()
    out = [row for row in range(2 * IMAGES) if row not in left]
    assert len(out) <= 30
    assert sum(train.swapped[row] for row in out) >= 12  # type: ignore[attr-defined]


def test_too_few_images(tmp_path: Path) -> None:
    data = ImageTextData(partial(ShapesDataset, length=3))
    with pytest.raises(ValueError, match="3 images have captions; expected 4"):
        rank_mismatches(lambda path: (TinyMatcher(), data), data, tmp_path)


class Shared(ShapesDataset):
    """Shapes whose first test scene is one of training, and the second nearly."""

    def __init__(self, split: str) -> None:
        super().__init__(split, length=30)
        if split == "test":
            train = ShapesDataset("train", length=30)
            self._drawn._painted[0] = train.pixels(7)
            self._drawn._painted[1] = train.pixels(9) // 2 * 2


def test_images_in_two_splits(tmp_path: Path) -> None:
    data = ImageTextData(Shared)
    equal, near, *others = duplicate_images(data, ["train", "val", "test"])
    assert equal == ("train", "train-7", "test", "test-0", 1.0)
    assert near[:4] == ("train", "train-9", "test", "test-1")
    assert 0.99 <= near.cosine < 1
    assert others == []
    path = audit_data(data, tmp_path, report=lambda line: None)
    kept = ImageTextData(Shared, exclude=path).training_captions
    assert set(range(150)) - set(kept.tolist()) == {*range(35, 40), *range(45, 50)}
    old = tmp_path / "old.csv"
    caption = data.split("train").captions[0]
    write_table(old, ("image", "caption"), [("train-0", caption), ("train-7", "")])
    said: list[str] = []
    audit_data(ImageTextData(Shared, exclude=old), tmp_path, report=said.append)
    rows = zip(*read_table(path).columns.values(), strict=True)
    assert list(rows) == [("train-0", caption), ("train-7", ""), ("train-9", "")]
    assert said[-1].startswith(f"2 images and 0 captions, and the 2 rows of {old}: ")


def test_statistics_of_captions() -> None:
    tokenizer = WordTokenizer(Vocabulary.build(["a dog a dog"], min_count=1), max_length=6)
    captions = ["A dog", "a dog!", "a cat", "собака тут", "a dog a dog a"]  # the last is cut
    found = caption_statistics(captions, torch.tensor([0, 1, 1, 2, 2]), tokenizer)
    assert found.count == 5
    assert found.words == (2, 2, 5)
    assert found.shared == [("a dog", 2)]
    assert found.scripts == {"LATIN": 0.8, "CYRILLIC": 0.2}
    assert dict(found.unknown_words) == {"cat": 1, "собака": 1, "тут": 1}
    assert found.cut == pytest.approx(0.2)
    assert found.unknown == pytest.approx(3 / 12)  # of words: start and end are none
    whole = CaptionTokens(map(tokenizer.encode, captions))
    assert found.unknown == whole.share(tokenizer.unk_id)


def test_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--data.dataset.length", "12", "--mismatches", "false", "--output", "found"]
    main(["audit", "--data", "mate/shapes", *words])
    printed = capsys.readouterr().out
    assert "train: 12 images" in printed
    assert "images in two splits: 0 equal" in printed
    assert (tmp_path / "found/exclude.csv").read_text() == "image,caption\n"
    data = ImageTextData(partial(ShapesDataset, length=12), exclude="found/exclude.csv")
    assert len(data.training_captions) == 60


def test_any_caption_is_written_so_that_it_is_read_again(tmp_path: Path) -> None:
    captions = ["two\rlines", "two\nlines", ' a "dog", ', "=1", "plain"]
    path = tmp_path / "list.csv"
    write_table(path, ("image", "caption"), [("a, b.jpg", caption) for caption in captions])
    assert read_table(path).columns == {"image": ["a, b.jpg"] * 5, "caption": captions}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data no/such", "'no/such'"),
        ("--data mate/shapes --mismatches maybe", "expected true or false"),
        ("--data mate/shapes --threshold x", "expected a cosine"),
        ("--data mate/shapes --mismatches false --output", "--output is empty; expected a folder"),
        ("--data mate/shapes --dat.seed 3", "unknown option"),
        ("--mismatches maybe --data mate/shapes", "expected true or false"),
        ("mine --data mate/shapes", "unexpected 'mine'"),
        ("--data mate/shapes --name mine", "name is given; expected none: trainings are written"),
        ("--data mate/shapes --protocol coco-1k", "protocol is an option of test and validate"),
        (
            "--data mate/shapes --mismatches false --trainer.max_steps 3",
            "trainer.max_steps is given, without effect where mismatches is false",
        ),
    ],
)
def test_wrong_words(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["audit", *words.split()])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
