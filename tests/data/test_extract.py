from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from full_disk import files_of_at_most
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.data import ImageTextData
from itmkit.data.extract import extract_features, write_captions
from itmkit.data.feature_file import read_backbone
from itmkit.data.images import BadSampleError, Regions
from itmkit.data.karpathy import KarpathyDataset
from itmkit.data.precomp import PrecompDataset
from itmkit.data.stored_features import extracted_features

Photos = Callable[..., tuple[Path, Path]]


class Patches(nn.Module):
    """A backbone of one layer; can stop, as if interrupted, at a call to come."""

    dim = 6
    grid = (2, 2)
    image_size = 16

    def __init__(self, *, stop_at: int | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 8, stride=8)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.layer.parameters():
            parameter.data = scale * torch.randn(parameter.shape, generator=generator)
        self.calls = 0
        self.stop_at = stop_at

    def forward(self, pixels: Tensor) -> tuple[Tensor, None]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return self.layer(pixels).flatten(2).transpose(1, 2), None


def dataset(photos: Photos, split: str = "train", *, captions: int = 5) -> KarpathyDataset:
    annotations, images = photos({"train": 7, "val": 3}, captions=captions)
    return KarpathyDataset(
        split, annotations, images, image_size=16, train_augment=False, max_captions=None
    )


def extract(data: KarpathyDataset, backbone: nn.Module, output: Path, **options: object) -> Path:
    return extract_features(data, backbone, output, batch_size=2, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_those_of_the_backbone_and_read_by_both(
    photos: Photos, tmp_path: Path, workers: int
) -> None:
    data, backbone, output = dataset(photos), Patches().train(), tmp_path / "features"
    path = extract(data, backbone, output, name="patches", num_workers=workers)
    assert backbone.training
    assert sorted(p.name for p in output.iterdir()) == [
        "train_caps.txt",
        "train_features.json",
        "train_ids.txt",
        "train_ims.npy",
    ]
    assert path == output / "train_ims.npy"
    assert np.load(path).dtype == np.float16
    notes = json.loads((output / "train_features.json").read_text())
    assert (notes["backbone"], notes["grid"], notes["shape"]) == ("patches", [2, 2], [7, 4, 6])

    annotations, _ = photos({"train": 7, "val": 3})
    own = KarpathyDataset("train", annotations, features=output)
    precomp = PrecompDataset("train", output)
    assert own.captions == precomp.captions == data.captions
    assert own.names == precomp.names == data.names
    assert own.preprocessing == precomp.preprocessing == data.preprocessing
    for row in range(7):
        pixels = data.image(row)
        assert isinstance(pixels, Tensor)
        expected = backbone(pixels[None])[0][0].detach()
        for read in (own.image(row), precomp.image(row)):
            assert isinstance(read, Regions)
            torch.testing.assert_close(read.features, expected, atol=1e-2, rtol=1e-3)
            assert read.boxes is not None
            assert read.boxes[3].tolist() == [0.5, 0.5, 1.0, 1.0]


def test_features_are_matched_by_name(photos: Photos, tmp_path: Path) -> None:
    data = dataset(photos)
    extract(data, Patches(), tmp_path / "features")
    annotations, _ = photos({"train": 7, "val": 3})
    content = json.loads(annotations.read_text())
    content["images"] = content["images"][::-1]
    del content["images"][-3]
    annotations.write_text(json.dumps(content))
    turned = KarpathyDataset("train", annotations, features=tmp_path / "features")
    stored = PrecompDataset("train", tmp_path / "features")
    assert turned.names == [f"train_{i}.jpg" for i in (6, 5, 4, 3, 1, 0)]
    image, expected = turned.image(4), stored.image(1)
    assert isinstance(image, Regions)
    assert torch.equal(image.features, expected.features)


def test_stopped_extraction_goes_on_behind_the_last_whole_batch(
    photos: Photos, tmp_path: Path
) -> None:
    data = dataset(photos)
    extract(data, Patches(), tmp_path / "whole")
    output = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        extract(data, Patches(stop_at=4), output)  # one call for the shape, two batches done
    assert sorted(p.name for p in output.iterdir()) == ["train_ims.npy.part", "train_progress.json"]
    assert json.loads((output / "train_progress.json").read_text())["done"] == 4
    with pytest.raises(FileNotFoundError, match=r"train_ims\.npy is missing"):
        PrecompDataset("train", output)

    backbone = Patches()
    extract(data, backbone, output)
    assert backbone.calls == 1 + 2
    for path in (tmp_path / "whole").iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()
    assert len(list(output.iterdir())) == 4

    backbone = Patches()  # nothing is left to do
    before = (output / "train_ims.npy").stat().st_mtime_ns
    extract(data, backbone, output)
    assert backbone.calls == 1
    assert (output / "train_ims.npy").stat().st_mtime_ns == before


@pytest.mark.parametrize("stop_at", [4, None])
def test_error_of_other_settings(photos: Photos, tmp_path: Path, stop_at: int | None) -> None:
    data, output = dataset(photos), tmp_path / "features"
    if stop_at:
        with pytest.raises(KeyboardInterrupt):
            extract(data, Patches(stop_at=stop_at), output)
    else:
        extract(data, Patches(), output)
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(ValueError, match="made with other settings: weights is"):
        extract(data, Patches(scale=2.0), output)
    with pytest.raises(ValueError, match=r"dtype is 'float16' in train_.*, but 'float32' now"):
        extract(data, Patches(), output, dtype="float32")
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_a_count_of_tokens_is_no_grid(photos: Photos, tmp_path: Path) -> None:
    class Queries(Patches):
        grid = None  # type: ignore[assignment]

    extract(dataset(photos), Queries(), tmp_path / "features")
    assert PrecompDataset("train", tmp_path / "features").image(0).boxes is None
    assert json.loads((tmp_path / "features/train_features.json").read_text())["grid"] is None


def test_the_grid_is_that_of_the_backbone(photos: Photos, tmp_path: Path) -> None:
    class Wide(Patches):
        grid = (1, 4)

    class Wrong(Patches):
        grid = (3, 4)

    class OfOtherImages(Wide):
        image_size = 224

    extract(dataset(photos), Wide(), tmp_path / "wide")
    boxes = PrecompDataset("train", tmp_path / "wide").image(0).boxes
    assert boxes is not None
    assert boxes[1].tolist() == [0.25, 0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match=r"backbone has the grid \(3, 4\), but gives 4 tokens"):
        extract(dataset(photos), Wrong(), tmp_path / "wrong")
    extract(dataset(photos), OfOtherImages(), tmp_path / "other")
    assert PrecompDataset("train", tmp_path / "other").image(0).boxes is None


@pytest.mark.parametrize("stop_at", [1, 3, None])
def test_the_backbone_is_left_as_it_was(
    photos: Photos, tmp_path: Path, stop_at: int | None
) -> None:
    class Frozen(Patches):
        def __init__(self) -> None:
            super().__init__(stop_at=stop_at)
            self.norm = nn.BatchNorm2d(3).eval()
            self.dropout = nn.Dropout(0.5)

        def forward(self, pixels: Tensor) -> tuple[Tensor, None]:
            assert not any(module.training for module in self.modules())
            return super().forward(self.dropout(self.norm(pixels)))

    backbone = Frozen()
    before = [(module, module.training) for module in backbone.modules()]
    with pytest.raises(KeyboardInterrupt) if stop_at else nullcontext():
        extract(dataset(photos), backbone, tmp_path / "features")
    assert [(module, module.training) for module in backbone.modules()] == before


def test_captions_are_added_to_features_without(photos: Photos, tmp_path: Path) -> None:
    annotations, images = photos({"val": 3})
    extract(KarpathyDataset("val", None, images, image_size=16), Patches(), tmp_path / "out")
    data = KarpathyDataset("val", annotations, images, image_size=16)
    extract(data, Patches(), tmp_path / "out")
    assert PrecompDataset("val", tmp_path / "out").captions == data.captions


def test_captions_that_changed_are_written_again(photos: Photos, tmp_path: Path) -> None:
    for count in (5, 3):
        data, backbone = dataset(photos, "val", captions=count), Patches()
        config = {"class_path": "Patches"} if count == 5 else None
        extract(data, backbone, tmp_path / "out", config=config)
        assert backbone.calls == (3 if count == 5 else 1)  # one to see the shape
        found = PrecompDataset("val", tmp_path / "out")
        assert found.captions == data.captions
        assert found.caption_images.tolist() == data.caption_images.tolist()
        notes = json.loads((tmp_path / "out/val_features.json").read_text())
        assert (notes["captions"], notes["config"]) == (3 * count, {"class_path": "Patches"})


def test_other_numbers_of_captions_are_kept(photos: Photos, tmp_path: Path) -> None:
    data = dataset(photos, "val", captions=3)
    extract(data, Patches(), tmp_path / "features")
    again = PrecompDataset("val", tmp_path / "features")
    assert again.caption_images.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert again.captions == data.captions


def test_numbers_of_captions_that_were_there_before_are_gone(tmp_path: Path) -> None:
    write_captions(tmp_path, "val", ["a"], [["one", "two"]])
    assert (tmp_path / "val_cap_images.txt").read_text() == "0\n0\n"
    write_captions(tmp_path, "val", ["a"], [["one", "two", "three", "four", "five"]])
    assert not (tmp_path / "val_cap_images.txt").exists()


def test_features_of_photos_without_captions(photos: Photos, tmp_path: Path) -> None:
    annotations, images = photos({"val": 3})
    (images / "val_1.jpg").rename(images / "café 1.JPG")
    data = KarpathyDataset("mine", None, images, image_size=16)
    output = tmp_path / "features"
    extract(data, Patches(), output)
    assert sorted(path.name for path in output.iterdir()) == [
        "mine_features.json",
        "mine_ids.txt",
        "mine_ims.npy",
    ]
    names = ["café 1.JPG", "val_0.jpg", "val_2.jpg"]
    read = PrecompDataset("mine", output)
    assert (read.names, read.captions) == (names, [])
    assert read.image(1).features.shape == (4, 6)

    # Captions that come later: one image has none, one is spelled in another way.
    content = json.loads(annotations.read_text())
    content["images"][0]["sentences"] = []
    content["images"][1]["filename"] = "cafe\u0301 1.JPG"
    for entry in content["images"]:
        entry["split"] = "mine"
    annotations.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match="1 of the 3 images"):
        own = KarpathyDataset("mine", annotations, features=output)
    image = own.image(1)
    assert isinstance(image, Regions)
    assert torch.equal(image.features, read.image(0).features)

    # Without the note of itmkit extract, captions that are not there are missing.
    (output / "mine_features.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"mine_caps\.txt is missing"):
        PrecompDataset("mine", output)


@pytest.mark.filterwarnings("ignore:.*no captions")
def test_images_without_captions_are_kept(photos: Photos, tmp_path: Path) -> None:
    annotations, images = photos({"val": 3})
    content = json.loads(annotations.read_text())
    content["images"][1]["sentences"] = []
    annotations.write_text(json.dumps(content))
    extract(KarpathyDataset("val", annotations, images, image_size=16), Patches(), tmp_path / "out")
    again = PrecompDataset("val", tmp_path / "out")
    assert again.caption_images.tolist() == [0] * 5 + [2] * 5


def test_error_of_a_feature_that_is_not_finite_names_the_image(
    photos: Photos, tmp_path: Path
) -> None:
    data = dataset(photos)
    message = "features of image 'train_0.jpg' are not finite in float16"
    with pytest.raises(ValueError, match=message):
        extract(data, Patches(scale=1e5), tmp_path / "features")
    extract(data, Patches(scale=1e5), tmp_path / "large", dtype="float32")


def test_error_of_random_augmentation(photos: Photos, tmp_path: Path) -> None:
    annotations, images = photos()
    data = KarpathyDataset("train", annotations, images, image_size=16)
    with pytest.raises(ValueError, match="expected train_augment=False"):
        extract(data, Patches(), tmp_path / "features")
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("fault", ["unreadable photo", "full disk"])
def test_extraction_that_fails_leaves_no_features_and_goes_on_once_mended(
    photos: Photos, tmp_path: Path, fault: str
) -> None:
    annotations, images = photos({"train": 7, "val": 3})
    data = KarpathyDataset("train", annotations, images, image_size=64, train_augment=False)
    extract(data, Patches(), tmp_path / "whole")
    photo, output = images / "train_5.jpg", tmp_path / "features"
    content = photo.read_bytes()
    if fault == "unreadable photo":
        photo.write_bytes(content[: len(content) // 2])
        with pytest.raises(BadSampleError, match=r"train_5.jpg is not a readable image"):
            extract(data, Patches(), output)
        photo.write_bytes(content)
    else:
        with (
            pytest.raises(OSError, match=r"too large: '.*train_ims.npy.part'"),
            files_of_at_most(128 + 5 * 64 * 6 * 2),
        ):
            extract(data, Patches(), output)
    assert sorted(p.name for p in output.iterdir()) == ["train_ims.npy.part", "train_progress.json"]
    assert json.loads((output / "train_progress.json").read_text())["done"] == 4
    backbone = Patches()
    extract(data, backbone, output)
    assert backbone.calls == 1 + 2
    for path in (tmp_path / "whole").iterdir():
        assert (output / path.name).read_bytes() == path.read_bytes()


def test_error_of_a_disk_without_room(
    photos: Photos, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=335))
    message = "the features need 336 bytes, but only 335 are free: '.*features'"
    with pytest.raises(OSError, match=message):
        extract(dataset(photos), Patches(), tmp_path / "features")
    assert list((tmp_path / "features").iterdir()) == []


def test_error_of_an_output_that_cannot_be_written_to(photos: Photos, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"'.*file(/features)?'"):
        extract(dataset(photos), Patches(), tmp_path / "file" / "features")
    output = tmp_path / "read-only"
    output.mkdir(mode=0o500)
    if os.access(output, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(PermissionError, match=r"'.*read-only/train_ims.npy.part'"):
        extract(dataset(photos), Patches(), output)


def test_error_of_a_part_that_is_shorter_than_noted(photos: Photos, tmp_path: Path) -> None:
    data, output = dataset(photos), tmp_path / "features"
    with pytest.raises(KeyboardInterrupt):
        extract(data, Patches(stop_at=4), output)
    os.truncate(output / "train_ims.npy.part", 128 + 3 * 4 * 6 * 2)
    with pytest.raises(ValueError, match=r"train_ims.npy.part has 3 rows; expected 4, as in"):
        extract(data, Patches(), output)


def test_error_of_features_of_other_photos(photos: Photos, tmp_path: Path) -> None:
    output = tmp_path / "features"
    extract(dataset(photos, "val"), Patches(), output)
    annotations, _ = photos({"val": 5})
    message = "val_ids.txt lacks 'val_3.jpg', in all 2 of the 5 images of the split 'val'"
    with pytest.raises(ValueError, match=re.escape(message)):
        KarpathyDataset("val", annotations, features=output)


def test_error_of_features_of_no_photos(tmp_path: Path) -> None:
    np.save(tmp_path / "val_ims.npy", np.zeros((0, 1, 2), np.float32))
    (tmp_path / "val_ids.txt").write_text("")
    with pytest.raises(InputError, match=r"val_ids\.txt lacks 'a\.jpg', in all 1 of"):
        extracted_features("val", ["a.jpg"], tmp_path)


def test_error_of_a_backbone_with_padding(photos: Photos, tmp_path: Path) -> None:
    class Padded(Patches):
        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            tokens, _ = super().forward(pixels)
            return tokens, torch.zeros(tokens.shape[:2], dtype=torch.bool)

    with pytest.raises(ValueError, match="with padding; expected"):
        extract(dataset(photos), Padded(), tmp_path / "features")


def test_error_of_splits_and_checkpoints_of_another_backbone(
    photos: Photos, tmp_path: Path
) -> None:
    def data(folder: Path) -> ImageTextData:
        made = ImageTextData(
            partial(PrecompDataset, root=folder), vocabulary_min_count=1, batch_size=5
        )
        made.setup("fit")
        return made

    for folder, scale in (("mixed", 2.0), ("own", 1.0), ("other", 2.0)):
        for split in ("train", "val"):
            backbone = Patches(scale=1.0 if folder == "mixed" and split == "train" else scale)
            extract(dataset(photos, split), backbone, tmp_path / folder, name="patches")
    expected = r"val_ims.npy was made by 'patches' \(weights \w+\); expected 'patches' \(weights "
    with pytest.raises(InputError, match=expected + r"\w+\), as those of the split 'train'"):
        data(tmp_path / "mixed")
    state = data(tmp_path / "own").state_dict()
    data(tmp_path / "own").load_state_dict(state)
    with pytest.raises(InputError, match=r"train_ims.npy was made by .* as the checkpoint"):
        data(tmp_path / "other").load_state_dict(state)


@pytest.mark.parametrize("content", ["[[1]]", '{"backbone": "patches"}'])
def test_notes_without_a_backbone_are_of_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "train_features.json"
    assert read_backbone(path) is None
    path.write_text(content)
    assert read_backbone(path) is None
