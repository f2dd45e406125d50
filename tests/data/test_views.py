"""Augmented views of photos as stored features: training draws one, evaluation has the plain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from itmkit.data import (
    ImageTextData,
    KarpathyDataset,
    PhotoFolder,
    PrecompDataset,
    extract_features,
)
from itmkit.data.order import mixed_seed

Photos = Callable[..., tuple[Path, Path]]
VIEWS = 3


class Patches(nn.Module):
    """A backbone that does nothing but cut; can stop, as if interrupted, at a call to come."""

    grid = (2, 2)
    image_size = 16

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self.calls, self.stop_at = 0, stop_at

    def forward(self, pixels: Tensor) -> tuple[Tensor, None]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        return nn.functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2), None


def extract(
    photos: Photos, output: Path, backbone: nn.Module | None = None, **options: Any
) -> KarpathyDataset:
    annotations, images = photos({"train": 5, "val": 2})
    data = KarpathyDataset("train", annotations, images, image_size=16, train_augment=False)
    scale = options.pop("scale", (0.3, 0.6))
    drawn = PhotoFolder(
        "train",
        data.names,
        images,
        preprocessing=data.preprocessing,
        augment=True,
        crop_scale=scale,
    )
    given = {"views": VIEWS, "augmented": drawn, "batch_size": 2, "seed": 4} | options
    extract_features(data, backbone or Patches(), output, name="patches", progress=False, **given)
    return data


def stored(folder: Path) -> list[np.ndarray]:
    names = ["train_ims.npy", *(f"train_ims.view{view}.npy" for view in range(1, VIEWS))]
    return [np.load(folder / name) for name in names]


@pytest.mark.parametrize("workers", [0, 1])
def test_views_are_random_parts_and_view_0_is_plain(
    photos: Photos, tmp_path: Path, workers: int
) -> None:
    extract(photos, tmp_path / "out", num_workers=workers)
    extract(photos, tmp_path / "plain", views=1, augmented=None)
    plain = np.load(tmp_path / "plain/train_ims.npy")
    views = stored(tmp_path / "out")
    assert np.array_equal(views[0], plain)
    assert all(view.dtype == np.float16 and view.shape == plain.shape for view in views)
    for view in views[1:]:
        assert all(not np.array_equal(own, other) for own, other in zip(view, plain, strict=True))
    assert not np.array_equal(views[1], views[2])

    extract(photos, tmp_path / "again")
    assert all(map(np.array_equal, stored(tmp_path / "again"), views))
    extract(photos, tmp_path / "other", seed=5)
    assert not np.array_equal(stored(tmp_path / "other")[1], views[1])


def batches(folder: Path, photos: Photos, seed: int = 0, **options: Any) -> ImageTextData:
    annotations, _ = photos({"train": 5, "val": 2})
    data = ImageTextData(
        lambda split: KarpathyDataset(split, annotations, features=folder, **options),
        batch_size=5,
        val_split=None,
        seed=seed,
    )
    data.setup("fit")
    return data


def test_training_draws_a_view_by_seed_epoch_and_caption(photos: Photos, tmp_path: Path) -> None:
    extract(photos, tmp_path)
    views = torch.from_numpy(np.stack(stored(tmp_path))).float()
    data = batches(tmp_path, photos, seed=7)
    drawn = []
    for epoch in range(3):
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            for features, caption in zip(
                batch.images.features, batch.text_ids.tolist(), strict=True
            ):
                view = mixed_seed(7, epoch, caption) % VIEWS
                image = int(data.split("train").caption_images[caption])
                assert torch.equal(features, views[view, image])
                drawn.append(view)
            assert batch.images.boxes is not None
    counts = np.bincount(drawn)
    assert len(counts) == VIEWS
    assert counts.min() > len(drawn) / 6


def test_evaluation_and_train_augment_false_take_the_plain_view(
    photos: Photos, tmp_path: Path
) -> None:
    extract(photos, tmp_path)
    plain = torch.from_numpy(stored(tmp_path)[0]).float()
    for source in (
        PrecompDataset("train", tmp_path).source,
        batches(tmp_path, photos).split("train").source,
    ):
        assert source.augments
        assert torch.equal(source.read(range(5)).features, plain)
        image = source.image(3)
        assert not isinstance(image, Tensor)
        assert torch.equal(image.features, plain[3])
        image = source.drawn(3, 1)
        assert not isinstance(image, Tensor)
        assert torch.equal(image.features, torch.from_numpy(stored(tmp_path)[1][3]).float())
    data = batches(tmp_path, photos, train_augment=False)
    assert not data.split("train").source.augments
    for batch in data.train_dataloader():
        assert torch.equal(batch.images.features, plain[batch.image_ids])


def test_stopped_in_a_view_it_goes_on_there(photos: Photos, tmp_path: Path) -> None:
    backbone = Patches()
    extract(photos, tmp_path / "whole", backbone)
    assert backbone.calls == 1 + 3 * 3
    with pytest.raises(KeyboardInterrupt):
        extract(photos, tmp_path / "cut", Patches(stop_at=1 + 3 + 2))
    assert not (tmp_path / "cut/train_ims.view1.npy").exists()
    backbone = Patches()
    extract(photos, tmp_path / "cut", backbone)
    assert backbone.calls == 1 + 2 + 3
    found, expected = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("cut", "whole")
    )
    assert found == expected


def test_views_can_be_added(photos: Photos, tmp_path: Path) -> None:
    extract(photos, tmp_path, views=1, augmented=None)
    assert not PrecompDataset("train", tmp_path).source.augments
    backbone = Patches()
    extract(photos, tmp_path, backbone)
    assert backbone.calls == 1 + 2 * 3
    assert PrecompDataset("train", tmp_path).source.augments


def test_error_of_views_that_do_not_fit(photos: Photos, tmp_path: Path) -> None:
    for options in ({"views": 1}, {"augmented": None}):
        with pytest.raises(ValueError, match="expected images drawn at random for more than one"):
            extract(photos, tmp_path / "none", **options)
    extract(photos, tmp_path)
    for options in ({"seed": 9}, {"scale": (0.9, 1.0)}):
        with pytest.raises(ValueError, match=r"train_ims.view1.npy was made with other settings"):
            extract(photos, tmp_path, **options)
    path = tmp_path / "train_ims.view2.json"
    notes = json.loads(path.read_text())
    path.write_text(json.dumps({**notes, "weights": "stale"}))
    message = r"view2.npy is no view of the images of train_ims.npy: weights is 'stale', not '"
    with pytest.raises(ValueError, match=message):
        PrecompDataset("train", tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train_ims.view2.json is missing"):
        PrecompDataset("train", tmp_path)
