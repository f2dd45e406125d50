"""Pictures inside tar and Parquet files and datasets are read as the same files are."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from picture_files import as_structs, jpegs, write_folder, write_parquet, write_tar
from recorder import check_resumes, same

from itmkit.data import (
    CaptionedFolder,
    CaptionedImages,
    DatasetPictures,
    ImageTextData,
    KarpathyDataset,
    PackedPhotos,
    table_captions,
)

PICTURES = jpegs(20)
CAPTIONS = {name: [f"u of {name}", f"v of {name}"] for name in PICTURES}
Write = Callable[[Path], Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tar_with_texts(folder: Path) -> Path:
    files: dict[str, Any] = {}
    for name, content in PICTURES.items():
        files |= {name: content, name.replace(".jpg", ".txt"): "\n".join(CAPTIONS[name])}
    return write_tar(folder / "photos.tar", files.items())


def tar_with_json(folder: Path) -> Path:
    files: dict[str, Any] = {}
    for name, content in PICTURES.items():  # the text may come first
        files |= {f"./{name[:-4]}.json": {"caption": CAPTIONS[name]}, f"./{name}": content}
    return write_tar(folder / "photos.tar", files.items())


def tar_shards(folder: Path) -> Path:
    (folder / "shards").mkdir()
    names = list(PICTURES)
    for number in range(3):
        files: dict[str, Any] = {}
        for name in names[number * 7 : number * 7 + 7]:
            files |= {name: PICTURES[name], f"{name[:-4]}.txt": "\n".join(CAPTIONS[name])}
        write_tar(folder / "shards" / f"{number:05d}.tar", files.items())
    return folder / "shards"


def parquet_of_structs(folder: Path) -> Path:
    columns = {"image": as_structs(PICTURES), "caption": list(CAPTIONS.values())}
    return write_parquet(folder / "photos.parquet", columns, row_group_size=3)


def parquet_a_row_a_caption(folder: Path) -> Path:
    names = [name for name in PICTURES for _ in range(2)]
    columns = {
        "jpg": [PICTURES[name] for name in names],
        "filename": names,
        "text": [text for own in CAPTIONS.values() for text in own],
    }
    return write_parquet(folder / "photos.parquet", columns)


def saved_dataset(folder: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))}
    )
    columns = {"image": as_structs(PICTURES), "caption": list(CAPTIONS.values())}
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(folder / "saved")
    return folder / "saved"


def arrow_file(folder: Path) -> Path:
    return next(saved_dataset(folder).glob("*.arrow"))


ONE_OF_A_KIND: list[Any] = [
    tar_with_texts,
    parquet_of_structs,
    pytest.param(saved_dataset, marks=pytest.mark.extras),
]
WRITERS = [
    *ONE_OF_A_KIND,
    tar_with_json,
    tar_shards,
    parquet_a_row_a_caption,
    pytest.param(arrow_file, marks=pytest.mark.extras),
]


def captioned(photos: Path, split: str = "all", **options: Any) -> CaptionedFolder:
    options = {"image_size": 8, "shares": {split: 1.0}, **options}
    return CaptionedFolder(split, photos, **options)


@pytest.mark.parametrize("write", WRITERS)
def test_pictures_and_captions_are_those_of_the_files(tmp_path: Path, write: Write) -> None:
    files = write_folder(tmp_path / "files", PICTURES)
    lines = [json.dumps({"file_name": n, "caption": own}) for n, own in CAPTIONS.items()]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    expected = captioned(files, captions=tmp_path / "t.jsonl")
    found = captioned(write(tmp_path))
    assert found.names == list(PICTURES)
    assert [found[row][1] for row in range(20)] == list(CAPTIONS.values())
    rows = [3, 19, 0]
    pixels = expected.source.read(rows).features
    assert torch.equal(found.source.read(rows).features, pixels)
    assert torch.equal(pickle.loads(pickle.dumps(found.source)).read(rows).features, pixels)


def test_a_caption_of_a_tar_file_is_a_line(tmp_path: Path) -> None:
    (name, content), *_ = PICTURES.items()
    text = "a\u2028dog\r\n\nthree\x0bcats\n"
    tar = write_tar(tmp_path / "photos.tar", {name: content, f"{name[:-4]}.txt": text}.items())
    assert captioned(tar).captions == ["a dog", "three cats"]


@pytest.mark.parametrize("write", [tar_with_texts, parquet_of_structs])
def test_captions_of_their_own_file(tmp_path: Path, write: Write) -> None:
    photos = write(tmp_path)
    (tmp_path / "t.csv").write_text("image,caption\np19.jpg,a dog\np2.jpg,a cat\n")
    found = captioned(photos, captions=tmp_path / "t.csv")
    assert found.captions == ["a dog", "a cat"]
    assert torch.equal(found.image(1), captioned(photos).image(2))  # type: ignore[arg-type]
    entry = {"filename": "p2.jpg", "split": "val", "sentences": [{"raw": "a cat"}]}
    (tmp_path / "dataset.json").write_text(json.dumps({"images": [entry]}))
    karpathy = KarpathyDataset("val", tmp_path / "dataset.json", photos, image_size=8)
    assert torch.equal(karpathy.image(0), found.image(1))  # type: ignore[arg-type]
    everything = KarpathyDataset("all", None, photos, require_captions=False)
    assert (everything.names, everything.captions) == (list(PICTURES), [])


def test_splits_of_files_in_a_folder(tmp_path: Path) -> None:
    names, folder = list(PICTURES), tmp_path / "data"
    folder.mkdir()
    for split, own in (("train-000", names[:3]), ("train-001", names[3:5]), ("dev", names[5:7])):
        columns = {"image": [PICTURES[n] for n in own], "file_name": own, "text": own}
        write_parquet(folder / f"{split}.parquet", columns)
    train, val = (CaptionedFolder(split, folder) for split in ("train", "val"))
    assert (train.names, train.captions, val.names) == (names[:5], names[:5], names[5:7])
    assert CaptionedFolder("train", folder / "{split}-*.parquet").names == names[:5]
    with pytest.raises(FileNotFoundError, match=r"no file of the split 'test', such as test.parq"):
        CaptionedFolder("test", folder)


@pytest.mark.extras
def test_splits_of_a_saved_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.load_from_disk(saved_dataset(tmp_path))
    parts = {"train": whole.select(range(15)), "validation": whole.select([19, 17])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "splits")
    assert len(captioned(tmp_path / "splits", "train", shares=None)) == 15
    assert captioned(tmp_path / "splits", "val", shares=None).names == ["p19.jpg", "p17.jpg"]
    with pytest.raises(FileNotFoundError, match="no split 'test'; expected one of train, valida"):
        captioned(tmp_path / "splits", "test", shares=None)


@pytest.mark.extras
def test_a_dataset_in_memory(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    whole = datasets.load_from_disk(saved_dataset(tmp_path)).shuffle(seed=0)
    pictures = DatasetPictures(whole)
    captions = table_captions("all", pictures, shares={"all": 1.0})
    photos = PackedPhotos("all", captions.names, pictures)
    data = CaptionedImages(captions, photos)
    row = data.names.index("p3.jpg")
    assert data[row][1] == CAPTIONS["p3.jpg"]
    assert pictures.read(row) == PICTURES["p3.jpg"]
    assert photos.state(row) != photos.state(row - 1)


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "p.arrow").touch()

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("itmkit.extras.version", missing)
    with pytest.raises(ValueError, match=r"^datasets is not installed: pip install 'itmkit\[data"):
        captioned(tmp_path / "p.arrow")


def test_a_picture_of_several_rows_without_a_name_is_one(tmp_path: Path) -> None:
    first, other = list(PICTURES.values())[:2]
    columns = {"image": [first, other, first], "text": ["a", "b", "c"]}
    data = captioned(write_parquet(tmp_path / "p.parquet", columns))
    assert [(name, data[row][1]) for row, name in enumerate(data.names)] == [
        ("00000000", ["a", "c"]),
        ("00000001", ["b"]),
    ]


def loader(photos: Path, **options: Any) -> Any:
    dataset = partial(captioned, photos, shares=None)
    data = ImageTextData(dataset, batch_size=5, vocabulary_min_count=1, **options)
    found = data.train_dataloader()
    found.sampler.set_epoch(3)
    return found


@pytest.mark.parametrize("write", ONE_OF_A_KIND)
def test_order_and_crops_are_the_same_with_workers_and_after_a_stop(
    tmp_path: Path, write: Write
) -> None:
    photos = write(tmp_path)
    whole = list(loader(photos))
    assert len(whole) == 6
    assert same(loader(photos, num_workers=2), whole)
    resumed = loader(photos)
    resumed.load_state_dict({"epoch": 3, "batches": 4})
    assert same(resumed, whole[4:])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", ONE_OF_A_KIND)
def test_a_run_that_was_stopped_goes_on_as_if_it_was_not(tmp_path: Path, write: Write) -> None:
    check_resumes(tmp_path, partial(captioned, write(tmp_path), shares=None))
