from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from itmkit.data import mapped_array
from itmkit.data.images import BadSampleError, Regions
from itmkit.data.precomp import PrecompDataset

Write = Callable[..., np.ndarray]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a split; ``times`` is how often each image is stored, ``captions`` a line count."""

    def write(
        images: int = 3, *, times: int = 1, captions: int = 15, dtype: str = "float32", **files: Any
    ) -> np.ndarray:
        generator = np.random.default_rng(0)
        features = generator.standard_normal((images, 4, 6)).astype(dtype)
        np.save(tmp_path / "dev_ims.npy", features.repeat(times, axis=0))
        lines = [f"caption {i} über\u2028alles\n" for i in range(captions)]
        (tmp_path / "dev_caps.txt").write_text("".join(lines), encoding="utf-8")
        for name, content in files.items():
            if isinstance(content, np.ndarray):
                np.save(tmp_path / f"dev_{name}.npy", content)
            else:
                (tmp_path / f"dev_{name}.txt").write_text(content)
        return features

    return write


def regions(data: PrecompDataset, row: int) -> Regions:
    image = data.image(row)
    assert image.features.dtype == torch.float32
    return image


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("times", [1, 5])
def test_images_stored_once_or_five_times(
    write: Write, tmp_path: Path, times: int, dtype: str
) -> None:
    features = write(times=times, dtype=dtype)
    data = PrecompDataset("dev", tmp_path)
    assert (len(data), len(data.captions), data.names) == (3, 15, ["0", "1", "2"])
    assert data.captions[7] == "caption 7 über\u2028alles"
    assert data.caption_images.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    for row in range(3):
        assert np.array_equal(regions(data, row).features.numpy(), features[row].astype("float32"))
        assert regions(data, row).boxes is None


def test_one_caption_an_image(write: Write, tmp_path: Path) -> None:
    features = write(5, captions=5)
    data = PrecompDataset("dev", tmp_path)
    assert data.caption_images.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(regions(data, 4).features.numpy(), features[4])


def test_other_numbers_of_captions(write: Write, tmp_path: Path) -> None:
    write(3, captions=4, cap_images="0\n0\n2\n1\n")
    data = PrecompDataset("dev", tmp_path)
    assert data.caption_images.tolist() == [0, 0, 2, 1]
    assert data.captions_of(0) == [0, 1]


@pytest.mark.parametrize(("times", "lines"), [(1, 3), (5, 3), (5, 15), (1, 15)])
def test_ids_are_names(write: Write, tmp_path: Path, times: int, lines: int) -> None:
    repeats = lines // 3
    ids = "".join(f"img{i}.jpg\n" * repeats for i in range(3))
    write(times=times, ids=ids)
    assert PrecompDataset("dev", tmp_path).names == ["img0.jpg", "img1.jpg", "img2.jpg"]


@pytest.mark.parametrize("times", [1, 5])
def test_boxes_in_pixels_become_relative(write: Write, tmp_path: Path, times: int) -> None:
    box = np.tile(np.array([10.0, 20.0, 50.0, 40.0], dtype="float32"), (3, 4, 1))
    sizes = np.array([[100, 50], [200, 80], [50, 40]])
    write(times=times, boxes=box.repeat(times, axis=0), img_sizes=sizes.repeat(times, axis=0))
    data = PrecompDataset("dev", tmp_path, max_regions=2)
    for row, (width, height) in enumerate(sizes.tolist()):
        boxes = regions(data, row).boxes
        assert boxes is not None
        expected = torch.tensor([10 / width, 20 / height, 50 / width, 40 / height]).expand(2, 4)
        torch.testing.assert_close(boxes, expected)
        assert regions(data, row).features.shape == (2, 6)


@pytest.mark.parametrize(("times", "stored"), [(1, 1), (5, 5), (5, 1)])
@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_relations_are_read_row_by_row(
    write: Write, tmp_path: Path, times: int, stored: int, dtype: str
) -> None:
    iou = np.random.default_rng(1).random((3, 4, 4)).astype(dtype)
    write(times=times, iou=iou.repeat(stored, axis=0))
    for most in (None, 2):
        data = PrecompDataset("dev", tmp_path, max_regions=most)
        assert data.source.relations is not None
        assert isinstance(data.source.relations.array, np.memmap)
        for row in range(3):
            image = regions(data, row)
            assert image.boxes is None
            assert image.relations is not None
            expected = iou[row, :most, :most].astype("float32")
            assert np.array_equal(image.relations.numpy(), expected)


def test_no_relations_without_a_file(write: Write, tmp_path: Path) -> None:
    write()
    assert regions(PrecompDataset("dev", tmp_path), 0).relations is None


def test_error_of_relations_out_of_range(write: Write, tmp_path: Path) -> None:
    iou = np.zeros((3, 4, 4), dtype="float32")
    iou[1, 2, 3] = 1.5
    write(iou=iou)
    data = PrecompDataset("dev", tmp_path)
    data.image(0)
    message = r"dev_iou.npy goes from 0 to 1.5 in row 1; expected \[0, 1\]"
    with pytest.raises(ValueError, match=message):
        data.image(1)


def test_grid_that_extract_noted_gives_boxes(write: Write, tmp_path: Path) -> None:
    write()
    (tmp_path / "dev_features.json").write_text(json.dumps({"grid": [2, 2]}))
    boxes = regions(PrecompDataset("dev", tmp_path), 1).boxes
    assert boxes is not None
    assert boxes[1].tolist() == [0.5, 0.0, 1.0, 0.5]


def test_features_are_mapped_and_not_sent_to_worker_processes(write: Write, tmp_path: Path) -> None:
    write()
    features = np.random.default_rng(0).random((3, 40, 60), dtype="float32")
    np.save(tmp_path / "dev_ims.npy", features)
    data = PrecompDataset("dev", tmp_path)
    assert isinstance(data.source.features.array, np.memmap)
    sent = pickle.dumps(data)
    assert len(sent) < 10_000
    again = pickle.loads(sent)
    assert np.array_equal(again.image(2).features.numpy(), features[2])


@pytest.mark.parametrize("dtype", [">f4", "float16", "float64"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("most", [None, 3])
def test_images_read_together_are_those_read_alone(
    write: Write, tmp_path: Path, dtype: str, order: Any, most: int | None
) -> None:
    box = np.sort(np.random.default_rng(2).random((3, 4, 2, 2)), axis=2).reshape(3, 4, 4)
    features = write(boxes=box, iou=np.random.default_rng(1).random((3, 4, 4)).astype(dtype))
    np.save(tmp_path / "dev_ims.npy", features.astype(dtype).copy(order))
    data = PrecompDataset("dev", tmp_path, max_regions=most)
    for _ in range(2):
        images = data.source.read([2, 0, 2])
        assert images.boxes is not None
        assert images.relations is not None
        expected = features[[2, 0, 2], :most].astype(dtype).astype("float32")
        assert np.array_equal(images.features.numpy(), expected)
        for place, row in enumerate([2, 0, 2]):
            alone = regions(data, row)
            assert torch.equal(alone.features, images.features[place])
            assert alone.boxes is not None
            assert torch.equal(alone.boxes, images.boxes[place])
            assert alone.relations is not None
            assert torch.equal(alone.relations, images.relations[place])


def test_bad_rows_are_found_at_every_reading(write: Write, tmp_path: Path) -> None:
    features = write()
    features[1, 2, 3] = np.inf
    np.save(tmp_path / "dev_ims.npy", features)
    data = PrecompDataset("dev", tmp_path)
    for rows in ([0, 2], [0, 1, 2], [0, 1], [1]):
        if 1 not in rows:
            data.source.read(rows)
            continue
        with pytest.raises(BadSampleError, match="not finite in row 1"):
            data.source.read(rows)


def test_error_of_a_file_cut_short_between_two_rows(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading on would end the process."""
    write()
    features = np.ones((3, 400, 60), dtype="float32")
    np.save(tmp_path / "dev_ims.npy", features)
    data = PrecompDataset("dev", tmp_path)
    copied = []

    def cut_after_the_first(stored: np.ndarray, features: np.ndarray) -> None:
        copied.append(len(stored))
        os.truncate(tmp_path / "dev_ims.npy", 400 * 60 * 4 + 128)

    monkeypatch.setattr(mapped_array, "_copy", cut_after_the_first)
    monkeypatch.setattr(np, "isfinite", np.ones_like)
    with pytest.raises(ValueError, match=r"dev_ims.npy was changed while it was in use"):
        data.source.read([0, 2])
    assert copied == [1]


BOXES = np.full((3, 4, 4), 0.5, dtype="float32")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"captions": 14}, "dev_caps.txt has 14 lines; expected 15 (five for each of the 3 rows"),
        ({"times": 5, "captions": 14}, "dev_caps.txt has 14 lines; expected 75"),
        ({"ids": "a\nb\n"}, "dev_ids.txt has 2 lines; expected 3"),
        ({"cap_images": "0\n"}, "dev_cap_images.txt has 1 lines; expected 15"),
        ({"cap_images": "0\n" * 14 + "x\n"}, "dev_cap_images.txt has a line that is no row"),
        ({"cap_images": "0\n" * 14 + "3\n"}, "line 15 is '3'; expected the row"),
        ({"images": 0, "captions": 0}, "the split 'dev' is empty"),
        ({"boxes": BOXES[:2]}, "dev_boxes.npy has the shape (2, 4, 4); expected (3, 4, 4)"),
        ({"iou": BOXES[:2]}, "dev_iou.npy has the shape (2, 4, 4); expected (3, 4, 4)"),
        ({"iou": BOXES[:, :3]}, "dev_iou.npy has the shape (3, 3, 4); expected (3, 4, 4)"),
        ({"iou": BOXES[0]}, "dev_iou.npy has the shape (4, 4); expected rank 3"),
        ({"iou": BOXES > 0}, "dev_iou.npy holds bool"),
        (
            {"boxes": BOXES * 100},
            "50 to 50 (as they are); expected [0, 1], but not so in row 0",
        ),
        ({"boxes": BOXES - np.array([0, 0, 0.2, 0])}, "a box with x2 < x1"),
        (
            {"boxes": BOXES * 100, "img_sizes": np.full((3, 2), 20)},
            "dev_boxes.npy goes from 2.5 to 2.5 (divided by dev_img_sizes.npy)",
        ),
    ],
)
def test_error_of_files_that_do_not_fit(
    write: Write, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    write(**change)
    with pytest.raises(ValueError, match=re.escape(message)):
        PrecompDataset("dev", tmp_path)


@pytest.mark.parametrize("name", ["dev_ims.npy", "dev_caps.txt"])
def test_error_of_a_missing_file(write: Write, tmp_path: Path, name: str) -> None:
    write()
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing"):
        PrecompDataset("dev", tmp_path)


def test_error_of_another_split_lists_those_that_are_there(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"val_ims.npy is missing; .* holds no split"):
        PrecompDataset("val", tmp_path)
    write()
    (tmp_path / "train_ims.npy").touch()
    with pytest.raises(FileNotFoundError, match=r"val_ims.npy is missing; .* splits dev, train$"):
        PrecompDataset("val", tmp_path)


def test_home_folder_in_a_path(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write()
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert len(PrecompDataset("dev", f"~/{tmp_path.name}")) == 3


def test_error_of_a_missing_folder_and_row(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        PrecompDataset("dev", tmp_path / "nowhere")
    write()
    with pytest.raises(IndexError, match="row is 3; expected 0 … 2"):
        PrecompDataset("dev", tmp_path).image(3)
    with pytest.raises(ValueError, match="max_regions is 0"):
        PrecompDataset("dev", tmp_path, max_regions=0)
