"""Features and captions of other layouts, read back from ours."""

from __future__ import annotations

import json
import re
import shutil
from base64 import b64encode
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from filelock import FileLock

from itmkit.checks import InputError
from itmkit.cli import main
from itmkit.data import (
    KarpathyDataset,
    PrecompDataset,
    Regions,
    convert_captions,
    convert_features,
)

COUNTS = (3, 10, 4)
IDS = ("391895", "42", "7")
NAMES = tuple(f"COCO_val2014_{int(i):012d}.jpg" for i in IDS)


def images(counts: Sequence[int] = COUNTS) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Ids with features and boxes in pixels of 200 × 100."""
    rng = np.random.default_rng(0)
    found = []
    for own, count in zip(IDS, counts, strict=True):
        corner = rng.random((count, 2)).astype("float32") * 50
        features = rng.standard_normal((count, 6)).astype("float32")
        found.append((own, features, np.concatenate([corner, corner + 50], 1)))
    return found


def line(own: str, features: np.ndarray, boxes: np.ndarray, /, **changes: Any) -> bytes:
    cells = {
        "image_id": own,
        "image_w": 200,
        "image_h": 100,
        "num_boxes": len(features),
        "boxes": b64encode(boxes.tobytes()).decode(),
        "features": b64encode(features.tobytes()).decode(),
    }
    return "\t".join(map(str, (cells | changes).values())).encode() + b"\n"


def as_tsv(folder: Path, counts: Sequence[int] = COUNTS) -> list[Path]:
    """Two parts, as bottom-up attention is given away."""
    found = images(counts)
    parts = [folder / "f.tsv.0", folder / "f.tsv.1"]
    parts[0].write_bytes(b"".join(line(*own) for own in found[:2]))
    parts[1].write_bytes(b"".join(line(*own) for own in found[2:]))
    return parts


def as_npz(folder: Path, counts: Sequence[int] = COUNTS) -> list[Path]:
    (folder / "npz").mkdir()
    for own, features, boxes in images(counts):
        path = folder / "npz" / f"{own}.npz"
        if len(features) % 2:
            np.savez(path, x=features, bbox=boxes, num_bbox=len(boxes), image_w=200, image_h=100)
        else:  # as others write it
            np.savez(path, x=features.T, bbox=boxes, num_bbox=len(boxes), image_w=200, image_h=100)
    return [folder / "npz"]


def as_hdf5_groups(folder: Path, counts: Sequence[int] = COUNTS) -> list[Path]:
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "f.h5", "w") as file:
        for own, features, boxes in images(counts):
            group = file.create_group(own)
            group["features"], group["bbox"] = features, boxes
            group["image_w"], group["image_h"] = 200, 100
    return [folder / "f.h5"]


def as_hdf5_arrays(folder: Path, counts: Sequence[int] = COUNTS) -> list[Path]:
    h5py = pytest.importorskip("h5py")
    ids, features, boxes = zip(*images(counts), strict=True)
    equal = len(set(counts)) == 1
    join: Callable[..., Any] = np.stack if equal else np.concatenate
    ends = np.cumsum(counts)
    with h5py.File(folder / "f.hdf5", "w") as file:
        file["image_features"], file["image_bb"] = join(features), join(boxes)
        file["ids"] = np.array(ids, dtype="S")
        file["image_w"], file["image_h"] = np.full(3, 200), np.full(3, 100)
        file["pos_boxes"] = np.stack([ends - counts, ends], 1)
    return [folder / "f.hdf5"]


LAYOUTS: list[Any] = [
    as_tsv,
    as_npz,
    pytest.param(as_hdf5_groups, marks=pytest.mark.extras),
    pytest.param(as_hdf5_arrays, marks=pytest.mark.extras),
]


def karpathy(folder: Path) -> Path:
    entries = [
        {
            "filename": name,
            "filepath": "val2014",
            "cocoid": int(own),
            "imgid": row,
            "split": split,
            "sentences": [{"raw": f"{own}, {i}"} for i in range(4 + row)],
        }
        for row, (own, name, split) in enumerate(
            zip(IDS, NAMES, ("train", "restval", "val"), strict=True)
        )
    ]
    path = folder / "dataset_coco.json"
    path.write_text(json.dumps({"images": entries}))
    return path


@pytest.mark.parametrize("counts", [COUNTS, (4, 4, 4)])
@pytest.mark.parametrize("write", LAYOUTS)
def test_features_are_those_of_the_source(
    write: Callable[..., list[Path]], counts: tuple[int, ...], tmp_path: Path
) -> None:
    found = convert_features(write(tmp_path, counts), tmp_path / "out", dtype="float32")
    assert found == [("train", tmp_path / "out/train_ims.npy", 3, (min(counts), max(counts)))]
    data = PrecompDataset("train", tmp_path / "out")
    assert not data.captions
    assert set(data.names) == set(IDS)
    for own, features, boxes in images(counts):
        image = data.image(data.names.index(own))
        assert isinstance(image, Regions)
        assert np.array_equal(image.features.numpy(), features)
        assert image.boxes is not None
        assert np.allclose(image.boxes.numpy() * [200, 100, 200, 100], boxes, atol=1e-4)
    assert (tmp_path / "out/train_counts.npy").exists() == (counts is COUNTS)


@pytest.mark.parametrize("write", LAYOUTS)
def test_annotations_give_names_splits_and_captions(
    write: Callable[..., list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations, out = karpathy(tmp_path), tmp_path / "out"
    sources = map(str, write(tmp_path))
    main(["convert", *sources, f"--output={out}", f"--annotations={annotations}"])
    assert capsys.readouterr().out.splitlines() == [
        f"{out}/train_ims.npy: 2 images, 3 to 10 regions",
        f"{out}/val_ims.npy: 1 images, 4 regions each",
    ]
    train = KarpathyDataset("train", annotations, features=out)
    (own, features, _), *_ = images()
    image = train.image(train.names.index(f"val2014/{NAMES[0]}"))
    assert isinstance(image, Regions)
    assert np.array_equal(image.features.numpy(), features.astype("float16"))
    stored = PrecompDataset("train", out)
    assert stored[stored.names.index(f"val2014/{NAMES[0]}")][1] == [f"{own}, {i}" for i in range(4)]
    assert len(stored.captions) == 9
    with pytest.raises(ValueError, match=r"val_ims.npy is there already"):
        convert_features([tmp_path / "none.tsv"], out, split="val", annotations=annotations)


def test_one_split_and_names_by_file(tmp_path: Path) -> None:
    annotations = karpathy(tmp_path)
    (tmp_path / "f").mkdir()
    for name in NAMES:
        np.save(tmp_path / "f" / name.replace(".jpg", ".npy"), np.ones((2, 3)))
    convert_features([tmp_path / "f"], tmp_path / "out", split="val", annotations=annotations)
    assert PrecompDataset("val", tmp_path / "out").names == [f"val2014/{NAMES[2]}"]
    assert not (tmp_path / "out/train_ims.npy").exists()
    (tmp_path / "f" / NAMES[0].replace(".jpg", ".npy")).unlink()
    with pytest.raises(ValueError, match=r"lack 'val2014/COCO_val2014_000000391895.jpg', in all 1"):
        convert_features([tmp_path / "f"], tmp_path / "all", annotations=annotations)
    assert not list((tmp_path / "all").iterdir())


def coco(path: Path, **changes: Any) -> Path:
    content = {
        "images": [{"id": 42, "file_name": "42.jpg"}, {"id": 7, "file_name": "7.jpg"}],
        "annotations": [
            {"image_id": 7, "caption": "a  dog\n"},
            {"image_id": 42, "caption": "a cat"},
            {"image_id": 7, "caption": "a hound"},
        ],
    }
    path.write_text(json.dumps(content | changes))
    return path


def test_captions_of_coco(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = [str(coco(tmp_path / f"captions_{split}.json")) for split in ("train", "val")]
    out = tmp_path / "dataset.json"
    words = [f"--output={out}", "--splits", "train", "val", "--folders", "train2017", "val2017"]
    main(["convert", *sources, *words])
    assert capsys.readouterr().out.splitlines() == [
        f"{out}, train: 2 images, 3 captions",
        f"{out}, val: 2 images, 3 captions",
    ]
    for name in ("val2017/42.jpg", "val2017/7.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    data = KarpathyDataset("val", out, tmp_path)
    assert data.names == ["val2017/42.jpg", "val2017/7.jpg"]
    assert data.captions == ["a cat", "a dog", "a hound"]


FIRST, SECOND, _ = images()
ROWS: list[tuple[bytes, str]] = [
    (line(*SECOND)[:-21], "f.tsv, line 2 has 225 bytes in features; expected float32 of 10 bo"),
    (line(*SECOND)[:30], "f.tsv, line 2 has 5 cells; expected 6, image_id, image_w"),
    (line(*SECOND, features="@@@@"), "f.tsv, line 2 has features that are not base64"),
    (line(*SECOND, num_boxes="ten"), "f.tsv, line 2 has 'ten' in num_boxes; expected a number"),
    (line(*SECOND, num_boxes=0), "f.tsv, line 2 has '0' in num_boxes; expected a number from 1"),
    (line(*SECOND, num_boxes=7), "f.tsv, line 2 has 240 bytes in features; expected float32 of 7"),
    (line(*SECOND, image_w=60), "f.tsv, line 2 has the box ["),
    (line(*SECOND, image_id="../../a"), "f.tsv, line 2 names '../../a'; expected a file inside"),
    (line("391895", *SECOND[1:]), "f.tsv, line 2 has the image '391895' again, with other feat"),
    (
        line("1", SECOND[1][:, :3].copy(), SECOND[2]),
        "line 2 has features of the width 3; expected 6",
    ),
    (line("1", SECOND[1] * np.inf, SECOND[2]), "f.tsv, line 2 has features that are not finite in"),
    (line("1", SECOND[1], SECOND[2][:, ::-1].copy()), "f.tsv, line 2 has the box ["),
    (b"\n", "f.tsv, line 2 has 1 cells; expected 6"),
]


@pytest.mark.parametrize(("row", "told"), ROWS, ids=range(len(ROWS)))
@pytest.mark.filterwarnings("ignore:invalid value")
def test_bad_row_is_one_line_and_nothing_is_left(row: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "f.tsv").write_bytes(line(*FIRST) + row)
    with pytest.raises(ValueError, match=re.escape(told)):
        convert_features([tmp_path / "f.tsv"], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_row_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "f.tsv").write_bytes(line(*FIRST) + line(*SECOND) + line(*FIRST))
    assert convert_features([tmp_path / "f.tsv"], tmp_path / "out")[0].images == 2


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.npy", b"no numbers", "a.npy is not a whole file of numbers: "),
        ("a.npz", b"PK\x03\x04no archive", "a.npz is not a whole file of numbers: "),
        ("a.txt", b"", "f has no .npy or .npz files; expected one an image"),
        ("a.npy", np.ones(3), "a.npy has float64 of the shape (3,); expected numbers (regions, d"),
        ("a.npy", np.array(["a"]), "a.npy has <U1 of the shape (1,); expected numbers"),
        ("a.npy", np.array([{}]), "a.npy is not a whole file of numbers: "),
    ],
)
def test_bad_files_of_arrays(name: str, content: Any, told: str, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    if isinstance(content, bytes):
        (tmp_path / "f" / name).write_bytes(content)
    else:
        np.save(tmp_path / "f" / name, content, allow_pickle=True)
    with pytest.raises(ValueError, match=re.escape(told)):
        convert_features([tmp_path / "f"], tmp_path / "out")


NO_NUMBERS: list[tuple[str, Any, str]] = [
    ("num_bbox", np.nan, "has nan in counts; expected a number above 0"),
    ("num_bbox", "x", "has <U1 of the shape () in counts; expected numbers"),
    ("num_bbox", np.zeros(0), "has float64 of the shape (0,) in counts; expected numbers"),
    ("image_w", "wide", "has <U4 of the shape () in width; expected numbers"),
    ("image_h", 0, "has 0 in height; expected a number above 0"),
    ("image_w", np.inf, "has inf in width; expected a number above 0"),
    ("bbox", np.full((3, 4), "x"), "has <U1 of the shape (3, 4) in boxes; expected numbers"),
]


@pytest.mark.parametrize(("key", "value", "told"), NO_NUMBERS, ids=range(len(NO_NUMBERS)))
def test_what_is_no_number_beside_the_features(
    key: str, value: Any, told: str, tmp_path: Path
) -> None:
    own, features, boxes = images()[0]
    parts = {"x": features, "bbox": boxes, "num_bbox": 3, "image_w": 200, "image_h": 100}
    (tmp_path / "f").mkdir()
    np.savez(tmp_path / "f" / f"{own}.npz", **parts | {key: value})
    with pytest.raises(InputError, match=re.escape(f"{own}.npz {told}")):
        convert_features([tmp_path / "f"], tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("write", LAYOUTS)
def test_damaged_files_are_one_line_and_nothing_is_left(
    write: Callable[..., list[Path]], tmp_path: Path
) -> None:
    """Bytes that are doubled, zeroed or turned, anywhere: an error of ours, or it is read."""
    source = write(tmp_path)[0]
    path = next(source.iterdir()) if source.is_dir() else source
    whole, random, refused = path.read_bytes(), Random(0), 0
    for _ in range(30):
        damaged, at = bytearray(whole), random.randrange(len(whole))
        damaged[at : at + 8] = random.choice([bytes(8), whole[at : at + 20], b"\xff"])
        path.write_bytes(damaged)
        told = ""
        try:
            convert_features([source], tmp_path / "out")
        except InputError as error:
            told = str(error)
        assert "\n" not in told
        assert bool(told) != bool(list(tmp_path.glob("out/*")))
        refused += bool(told)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert refused


WRONG_ARRAYS: list[tuple[str, Any, str]] = [
    ("image_w", 200, "has no rows in 'image_w'; expected 3"),
    ("image_w", np.array([b"x"] * 3), "has |S1 of the shape (3,) in image_w; expected numbers"),
    ("pos_boxes", np.arange(5), "has the shape (17, 6) in 'image_features'; expected (images"),
    ("pos_boxes", np.array([b"x"]), "has |S1 of the shape (1,) in pos_boxes; expected numbers"),
    ("image_bb", np.zeros((2, 4)), "has 2 rows in 'image_bb'; expected 17"),
]


@pytest.mark.extras
@pytest.mark.parametrize(("key", "value", "told"), WRONG_ARRAYS, ids=range(len(WRONG_ARRAYS)))
def test_arrays_of_hdf5_that_do_not_agree(key: str, value: Any, told: str, tmp_path: Path) -> None:
    (path,) = as_hdf5_arrays(tmp_path)
    import h5py

    with h5py.File(path, "a") as file:
        del file[key]
        file[key] = value
    with pytest.raises(InputError, match=re.escape(f"f.hdf5 {told}")):
        convert_features([path], tmp_path / "out")


@pytest.mark.extras
def test_bad_hdf5(tmp_path: Path) -> None:
    (path,) = as_hdf5_arrays(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"f.hdf5 is not a whole HDF5 file: "):
        convert_features([path], tmp_path / "out")
    import h5py

    for lacking, told in (
        ("ids", r"expected one of ids, image_ids"),
        ("pos_boxes", r"has the shape \(17, 6\) in 'image_features'; expected \(images"),
        ("image_features", r"f.hdf5, ids has .* of the shape|expected one of features"),
    ):
        path.write_bytes(whole)
        with h5py.File(path, "a") as file:
            del file[lacking]
        with pytest.raises(ValueError, match=told):
            convert_features([path], tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"images": [], "annotations": []}, "c.json has no images; expected one or more"),
        ({"images": 3}, "c.json is not in COCO's form (TypeError"),
        ({"annotations": [{}]}, "KeyError('caption') in annotations[0]); expected images[] with"),
        ({"annotations": [{"image_id": 1, "caption": "a"}]}, "c.json has no image 1, which annot"),
        ({"annotations": [{"image_id": 7, "caption": " "}]}, "an empty caption in annotations[0]"),
        ({"images": [{"id": 1, "file_name": "/a"}]}, "c.json, images[0] names '/a'; expected"),
        ({"images": [{"id": 7, "file_name": "a"}] * 2}, "c.json has the id 7 of images[1] twice"),
    ],
)
def test_bad_captions_of_coco(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    source = coco(tmp_path / "c.json", **changes)
    with pytest.raises(ValueError, match=re.escape(told)):
        convert_captions([source], tmp_path / "out.json", splits=["train"])
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["a.json", "--splits", "val", "--annotations", "b.json"], "annotations is 'b.json'; expe"),
        (["a.json", "--splits", "val", "--dtype", "float32"], "dtype is 'float32'; expected none"),
        (["a.tsv", "--folders", "val2017"], "folders is ['val2017']; expected none, of features"),
    ],
)
def test_options_of_the_other_kind_are_refused(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["convert", *words, f"--output={tmp_path / 'out'}"])
    assert told in capsys.readouterr().err


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    features, captions = as_tsv(tmp_path), coco(tmp_path / "c.json")
    before = sorted(tmp_path.iterdir())
    for write, name in (
        (lambda out: convert_features(features, out), "out"),
        (lambda out: convert_captions([captions], out, splits=["train"]), "out.json"),
    ):
        with FileLock(tmp_path / f".{name}.lock"), pytest.raises(InputError, match="by another p"):
            write(tmp_path / name)
        (tmp_path / f".{name}.lock").unlink()
    assert sorted(tmp_path.iterdir()) == before
