from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from recorder import check_resumes, same
from tiny_cli import refused
from tiny_cli import run as run_tiny
from torch import Tensor

from itmkit.checks import InputError
from itmkit.data.captioned_folder import CaptionedFolder
from itmkit.data.module import ImageTextData
from itmkit.data.preprocessing import IMAGENET_MEAN, Preprocessing
from itmkit.data.split_shares import DEFAULT_SHARES, draw_splits, kept_splits
from itmkit.extraction.to_disk import _captions

Write = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty photos: p0.jpg … p18.jpg, and p19.jpg in a folder inside."""
    photos = tmp_path / "photos"
    (photos / "a").mkdir(parents=True)
    for row, name in enumerate(names(20)):
        noise = np.random.default_rng(row).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((40, 32)).save(photos / name)
    return photos


COUNTS = {"train": 16, "val": 2, "test": 2}  # of twenty photos, drawn by the default shares


def names(count: int) -> list[str]:
    return [f"p{row}.jpg" for row in range(count - 1)] + [f"a/p{count - 1}.jpg"]


def write_csv(path: Path, rows: Sequence[Sequence[str]], delimiter: str = ",") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def captions_of(data: CaptionedFolder) -> dict[str, list[str]]:
    return {name: data[row][1] for row, name in enumerate(data.names)}


SPLITS = ["train", "train", "val", "test"]
EXPECTED = {"p0.jpg": ["a dog, running", 'a "big" dog'], "a/p19.jpg": ["a cat"]}


def as_rows(path: Path, delimiter: str = ",", header: Sequence[str] = ("image", "caption")) -> Path:
    rows = [(name, text) for name, texts in EXPECTED.items() for text in texts]
    return write_csv(path, [header, *rows], delimiter)


def as_json_lines(path: Path) -> Path:
    lines = [json.dumps({"file_name": n, "text": texts}) for n, texts in EXPECTED.items()]
    path.write_text("\n".join(lines) + "\n\n")
    return path


def as_parquet(path: Path) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"filename": list(EXPECTED), "caption": list(EXPECTED.values())}
    parquet.write_table(pyarrow.table(columns), path)
    return path


def lists_in_cells(path: Path, write: Callable[[Any], str] = json.dumps) -> Path:
    return write_csv(path, [("path", "text"), *((n, write(t)) for n, t in EXPECTED.items())])


TABLES: dict[str, Callable[[Path], Path]] = {
    "csv.csv": as_rows,
    "kaggle.txt": as_rows,
    "tabs.tsv": partial(as_rows, delimiter="\t"),
    "header.csv": partial(as_rows, header=(" File_Name ", "CAPTION")),
    "json.csv": lists_in_cells,
    "python.csv": partial(lists_in_cells, write=repr),
    "lines.jsonl": as_json_lines,
}


@pytest.mark.parametrize(
    ("name", "make"),
    [*TABLES.items(), pytest.param("p.parquet", as_parquet, marks=pytest.mark.extras)],
)
def test_tables_without_options(
    folder: Path, tmp_path: Path, name: str, make: Callable[[Path], Path]
) -> None:
    table = make(tmp_path / name)
    data = CaptionedFolder("train", folder, table, shares={"train": 1.0}, image_size=16)
    assert captions_of(data) == EXPECTED
    pixels = data.image(1)
    assert isinstance(pixels, Tensor)
    assert pixels.shape == (3, 16, 16)


def test_whole_paths_of_photos_in_a_folder_that_is_given_otherwise(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = write_csv(
        tmp_path / "t.csv", [("path", "text", "split"), (str(folder / "p0.jpg"), "a dog", "train")]
    )
    monkeypatch.chdir(folder / "a")
    for photos in (folder, "..", "../../photos"):
        data = CaptionedFolder("train", photos, table)
        assert data.names == ["p0.jpg"]
        assert _captions(table, Path(photos), "train") == ["a dog"]  # for a text model
    write_csv(tmp_path / "t.csv", [("path", "text"), (str(tmp_path / "p0.jpg"), "a dog")])
    with pytest.raises(ValueError, match="expected a file inside the image folder"):
        CaptionedFolder("train", "..", table, shares={"train": 1.0})


def test_columns_and_delimiter_by_options(folder: Path, tmp_path: Path) -> None:
    rows = [("path", "photo", "comment", "part"), ("x", "p0.jpg", "a dog", "A")]
    table = write_csv(tmp_path / "t.csv", rows, delimiter=";")
    data = CaptionedFolder(
        "A",
        folder,
        table,
        file_column="photo",
        caption_column="comment",
        split_column="part",
        delimiter=";",
    )
    assert captions_of(data) == {"p0.jpg": ["a dog"]}


def test_splits_of_a_column(folder: Path, tmp_path: Path) -> None:
    rows = [("p0.jpg", "u", "train"), ("p1.jpg", "v", "validation"), ("p0.jpg", "w", "train")]
    table = write_csv(tmp_path / "t.csv", [("image", "caption", "split"), *rows])
    assert captions_of(CaptionedFolder("train", folder, table)) == {"p0.jpg": ["u", "w"]}
    assert captions_of(CaptionedFolder("train", folder, table, max_captions=1)) == {"p0.jpg": ["u"]}
    val = CaptionedFolder("val", folder, table)  # as others call it
    assert (val.split, captions_of(val)) == ("val", {"p1.jpg": ["v"]})
    assert not (tmp_path / "t.splits.json").exists()


@pytest.mark.parametrize("captions", ["texts/{split}.csv", "texts"])
def test_splits_of_files(folder: Path, tmp_path: Path, captions: str) -> None:
    for name, split in (("p0.jpg", "train"), ("p1.jpg", "dev")):
        rows = [("image", "caption"), (name, f"of {split}")]
        write_csv(tmp_path / "texts" / f"{split}.csv", rows)
    train, val = (CaptionedFolder(s, folder, tmp_path / captions) for s in ("train", "val"))
    assert captions_of(train) == {"p0.jpg": ["of train"]}
    assert captions_of(val) == {"p1.jpg": ["of dev"]}
    with pytest.raises(FileNotFoundError, match=r"no table of the split 'test', .*dev.csv, train"):
        CaptionedFolder("test", folder, tmp_path / captions)


def test_metadata_of_hugging_face_beside_the_photos(folder: Path) -> None:
    write_csv(folder / "metadata.csv", [("file_name", "text"), ("p0.jpg", "u"), ("p1.jpg", "v")])
    found = [captions_of(CaptionedFolder(s, folder, shares={s: 1.0})) for s in ("train", "all")]
    assert found == [{"p0.jpg": ["u"], "p1.jpg": ["v"]}] * 2
    (folder / "metadata.csv").rename(folder / "a" / "metadata.csv")
    (folder / "a").rename(folder / "validation")  # names are relative to the file
    write_csv(folder / "validation" / "metadata.csv", [("file_name", "text"), ("p19.jpg", "w")])
    assert captions_of(CaptionedFolder("val", folder)) == {"validation/p19.jpg": ["w"]}
    with pytest.raises(FileNotFoundError, match=r"photos' has no metadata.csv, .jsonl or .parquet"):
        CaptionedFolder("train", folder)


def twenty(path: Path, count: int = 20) -> Path:
    rows = [(name, f"{text} of {name}") for name in names(20)[:count] for text in ("u", "v")]
    return write_csv(path, [("image", "caption"), *rows])


def drawn(folder: Path, table: Path, **options: Any) -> dict[str, list[str]]:
    return {s: CaptionedFolder(s, folder, table, **options).names for s in DEFAULT_SHARES}


def test_photos_of_two_splits_are_warned_of(folder: Path, tmp_path: Path) -> None:
    tables = [
        write_csv(
            tmp_path / f"{split}.csv", [("image", "caption"), *((f"p{i}.jpg", "x") for i in own)]
        )
        for split, own in (("train", range(5)), ("val", range(3, 7)), ("test", range(7, 9)))
    ]
    data = ImageTextData(
        lambda split: CaptionedFolder(split, folder, tables[0].parent), batch_size=1
    )
    told = r"the splits 'train' and 'val' share 2 photos, such as .*p3\.jpg"
    with pytest.warns(UserWarning, match=told) as caught:
        data.setup()
    assert sum("share" in str(one.message) for one in caught) == 1


def test_drawn_splits_follow_from_names_and_seed(folder: Path, tmp_path: Path) -> None:
    table = twenty(tmp_path / "t.csv")
    splits = drawn(folder, table)
    assert {split: len(found) for split, found in splits.items()} == COUNTS
    assert sorted(chain(*splits.values())) == sorted(names(20))
    note = tmp_path / "t.splits.json"
    assert json.loads(note.read_text())["splits"]["p0.jpg"] in splits
    note.unlink()
    assert drawn(folder, table) == splits
    note.unlink()
    assert drawn(folder, table, split_seed=1) != splits
    with pytest.raises(ValueError, match=r"t.splits.json was drawn with seed 1, not 0: give the"):
        CaptionedFolder("train", folder, table)


def test_photos_that_come_later_leave_the_others_in_their_splits(
    folder: Path, tmp_path: Path
) -> None:
    before = drawn(folder, twenty(tmp_path / "t.csv", 10))
    middle = drawn(folder, twenty(tmp_path / "t.csv", 15))
    after = drawn(folder, twenty(tmp_path / "t.csv", 20))
    assert all(set(before[split]) <= set(middle[split]) <= set(after[split]) for split in before)
    assert {split: len(found) for split, found in after.items()} == COUNTS
    assert drawn(folder, twenty(tmp_path / "t.csv", 20)) == after
    (tmp_path / "t.splits.json").write_text("[]")
    with pytest.raises(ValueError, match=r"t.splits.json is no draw of splits"):
        CaptionedFolder("train", folder, tmp_path / "t.csv")


@pytest.mark.parametrize("first", [1, 2, 10])
def test_photos_that_come_one_at_a_time_keep_the_shares(first: int, tmp_path: Path) -> None:
    note, before = tmp_path / "splits.json", dict[str, str]()
    for count in range(first, 61):
        found = kept_splits(note, [f"{row}.jpg" for row in range(count)], DEFAULT_SHARES, 0)
        assert before.items() <= found.items()
        before = found
        for split, share in DEFAULT_SHARES.items():
            assert abs(list(found.values()).count(split) - share * count) < 2
    assert sorted(map(list(before.values()).count, DEFAULT_SHARES)) == [6, 6, 48]
    rest = [name for name in before if before[name] != "val"]  # the others were deleted
    again = kept_splits(note, [*rest, "a.jpg", "b.jpg"], DEFAULT_SHARES, 0)
    assert again == {name: before[name] for name in rest} | {"a.jpg": "val", "b.jpg": "val"}


def test_drawn_by_several_runs_at_a_time(folder: Path, tmp_path: Path) -> None:
    note, table = tmp_path / "t.splits.json", twenty(tmp_path / "t.csv")
    with open(tmp_path / f".{note.name}.part", "w") as other:  # of another run, which is slower
        splits = drawn(folder, table)
        whole = note.read_text()
        other.write("half of ")
    assert note.read_text() == whole
    assert drawn(folder, table) == splits
    assert sorted(map(str, tmp_path.glob(".*"))) == [other.name]


def test_drawn_splits_where_nothing_can_be_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("itmkit.data.split_shares.write_text", refuse)
    table = twenty(tmp_path / "t.csv")
    assert drawn(folder, table) == drawn(folder, table)
    assert sorted(os.listdir(tmp_path)) == ["photos", "t.csv"]


@pytest.mark.parametrize("count", [3, 4, 7, 50, 101])
@pytest.mark.parametrize("shares", [DEFAULT_SHARES, {"val": 0.002, "train": 0.998}])
def test_every_split_gets_its_share_and_at_least_one(count: int, shares: dict[str, float]) -> None:
    found = list(draw_splits(map(str, range(count)), shares, 0).values())
    for split, share in shares.items():
        assert found.count(split) >= 1
        if count > 10:
            assert abs(found.count(split) - share * count) <= 1


def test_features_instead_of_photos(folder: Path, tmp_path: Path) -> None:
    table = twenty(tmp_path / "t.csv", 3)
    np.save(tmp_path / "all_ims.npy", np.arange(24, dtype="float32").reshape(4, 2, 3))
    (tmp_path / "all_ids.txt").write_text("p2.jpg\np1.jpg\nother.jpg\np0.jpg\n")
    for photos in (folder, None):
        data = CaptionedFolder("all", photos, table, features=tmp_path, shares={"all": 1.0})
        assert data.source.read([0, 2]).features[:, 0, 0].tolist() == [18, 0]

    def opened(**options: Any) -> int:
        known = {"captions": table, "features": tmp_path, "shares": {"all": 1.0}}
        return len(CaptionedFolder("all", None, **known, **options))

    assert opened(train_augment=False, mean=list(IMAGENET_MEAN)) == 3
    unused = {"image_size": 64, "mean": (0.5, 0.5, 0.5), "std": (1.0, 1.0, 1.0), "flip": 0.5}
    unused |= {"preprocessing": Preprocessing(64), "crop_scale": (0.1, 1.0), "max_pixels": 9}
    for option, value in {**unused, "check_images": False, "follow_links": True}.items():
        with pytest.raises(InputError, match=f"^{option} is .*, without effect with features"):
            opened(**{option: value})


def test_the_same_caption_twice_is_told(folder: Path, tmp_path: Path) -> None:
    rows = [("image", "caption"), ("p0.jpg", "a dog"), ("p0.jpg", "a  dog")]
    table = write_csv(tmp_path / "t.csv", rows)
    with pytest.warns(UserWarning, match=r"t.csv has 1 captions more than once .* 'a dog' of 'p0"):
        data = CaptionedFolder("all", folder, table, shares={"all": 1.0})
    assert data.captions == ["a dog", "a dog"]


def test_order_and_crops_are_the_same_with_workers_and_after_a_stop(
    folder: Path, tmp_path: Path
) -> None:
    def loader(**options: Any) -> Any:
        dataset = partial(CaptionedFolder, photos=folder, captions=table, image_size=8)
        data = ImageTextData(dataset, batch_size=5, vocabulary_min_count=1, **options)
        loader = data.train_dataloader()
        loader.sampler.set_epoch(3)
        return loader

    table = twenty(tmp_path / "t.csv")
    whole = list(loader())
    assert len(whole) == 6
    crops = torch.cat([batch.images.features for batch in whole])
    assert len({float(crop.sum()) for crop in crops}) == 30  # two captions an image, two crops
    assert same(loader(num_workers=2), whole)
    resumed = loader()
    resumed.load_state_dict({"epoch": 3, "batches": 4})
    assert same(resumed, whole[4:])


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(folder: Path, tmp_path: Path) -> None:
    table = twenty(tmp_path / "t.csv")
    check_resumes(tmp_path, partial(CaptionedFolder, photos=folder, captions=table, image_size=8))


@pytest.mark.filterwarnings("ignore")
def test_command_line_trains_on_it_and_refuses_a_wrong_table(
    folder: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twenty(tiny_folder / "t.csv")
    option = "--data.dataset"
    options = ["--data.vocabulary_max_size", "8"]
    options += [option, "itmkit.data.CaptionedFolder", f"{option}.photos", "photos"]
    options += [f"{option}.captions", "t.csv", f"{option}.image_size", "8"]
    wrong = ["--config", "tiny.yaml", *options, f"{option}.caption_column", "captoin"]
    message = refused(capsys, "fit", *wrong)
    assert message == (
        "caption_column is 'captoin', but t.csv has the columns 'image', 'caption'. "
        "Did you mean 'caption'?"
    )
    run = run_tiny("fit", *options, "--trainer.max_steps", "2")
    assert json.loads((run / "metrics.json").read_text())["about"]["val"]["captions"] == 4
