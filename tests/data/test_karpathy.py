from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from quiet_trainer import quiet_trainer
from timm.data.transforms_factory import create_transform
from tiny_matcher import TinyMatcher
from torch import Tensor

from itmkit.data.dataset import ImageTextDataset
from itmkit.data.images import Regions
from itmkit.data.karpathy import KarpathyDataset, karpathy_captions
from itmkit.data.module import ImageTextData
from itmkit.data.order import seeded
from itmkit.data.preprocessing import Preprocessing
from itmkit.retrieval import encode

Photos = Callable[..., tuple[Path, Path]]
HALF = (0.5, 0.5, 0.5)


def pixels(data: ImageTextDataset, row: int) -> Tensor:
    image = data.image(row)
    assert isinstance(image, Tensor)
    return image


def test_splits_names_and_captions(photos: Photos) -> None:
    annotations, images = photos()
    data = KarpathyDataset("val", annotations, images, image_size=32)
    assert data.names == ["val_0.jpg", "val_1.jpg"]
    assert len(data.captions) == 10
    assert data.captions[7] == "A café of val 1."
    assert data.caption_images.tolist() == [0] * 5 + [1] * 5
    assert len(KarpathyDataset("train", annotations, images)) == 4


def test_photos_are_scaled_cut_and_normalised(photos: Photos) -> None:
    annotations, images = photos(size=(48, 32))
    data = KarpathyDataset("test", annotations, images, image_size=32, mean=HALF, std=HALF)
    with Image.open(images / "test_1.jpg") as photo:
        expected = torch.from_numpy(np.array(photo.crop((8, 0, 40, 32)))).permute(2, 0, 1)
    assert pixels(data, 1).shape == (3, 32, 32)
    torch.testing.assert_close(pixels(data, 1), expected / 127.5 - 1)


def test_training_photos_are_cropped_at_random_and_never_mirrored(photos: Photos) -> None:
    annotations, images = photos({"train": 1, "val": 1}, size=(64, 64))
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8)[None, :, None], (64, 1, 3))
    for name in ("train_0.jpg", "val_0.jpg"):
        Image.fromarray(ramp).save(images / name, quality=100)
    data = KarpathyDataset("train", annotations, images, image_size=32)
    crops = [pixels(data, 0) for _ in range(20)]
    assert len({crop.sum().item() for crop in crops}) > 10
    assert all(crop[0, :, 0].mean() < crop[0, :, -1].mean() for crop in crops)

    mirrored = KarpathyDataset("train", annotations, images, image_size=32, flip=1.0)
    assert pixels(mirrored, 0)[0, :, 0].mean() > pixels(mirrored, 0)[0, :, -1].mean()
    for still in (
        KarpathyDataset("train", annotations, images, image_size=32, train_augment=False),
        KarpathyDataset("val", annotations, images, image_size=32),
    ):
        assert torch.equal(pixels(still, 0), pixels(still, 0))


class Negative(KarpathyDataset):
    """Photos that a dataset of one's own changes once they are read."""

    def image(self, row: int) -> Tensor:
        image = super().image(row)
        assert isinstance(image, Tensor)
        return -image


@pytest.mark.parametrize("kind", [KarpathyDataset, Negative])
@pytest.mark.parametrize("split", ["train", "mine"])
def test_any_split_is_augmented_in_training_and_in_no_evaluation(
    photos: Photos, kind: type[KarpathyDataset], split: str
) -> None:
    annotations, images = photos({split: 3})
    dataset = partial(kind, annotations=annotations, images=images, image_size=16)
    names = dict.fromkeys(("train_split", "val_split", "test_split"), split)
    still = torch.stack([pixels(dataset(split, train_augment=False), row) for row in range(3)])
    for wanted in (True, False):
        own = partial(dataset, train_augment=wanted)
        data = ImageTextData(own, batch_size=15, vocabulary_min_count=1, **names)
        (trained,) = data.train_dataloader()
        plain = (trained.images.features == still[trained.image_ids]).flatten(1).all(1)
        assert plain.any() != wanted
        state = torch.get_rng_state()
        loaders = data.val_dataloader(), data.test_dataloader(), data.evaluation_dataloader(split)
        for (batch,) in loaders:
            assert torch.equal(batch.images.features, still)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("split", ["train", "val"])
def test_pixels_are_those_of_timm(photos: Photos, split: str) -> None:
    """To the last bit, drawn from the same random numbers."""
    annotations, images = photos(size=(90, 70))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.6, 1.5)
    data = KarpathyDataset(split, annotations, images, image_size=32, mean=mean, std=std, flip=0.5)
    drawn: dict[str, Any] = {"is_training": True, "scale": (0.5, 1.0), "hflip": 0.5}
    options = drawn if split == "train" else {"crop_pct": 1.0}
    transform = create_transform(
        (3, 32, 32), mean=mean, std=std, interpolation="bicubic", color_jitter=0.0, **options
    )
    for seed in range(4):
        with seeded(seed):
            own = pixels(data, 1)
        with seeded(seed), Image.open(images / data.names[1]) as photo:
            assert torch.equal(own, transform(photo.convert("RGB")))
        assert own.is_contiguous()


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_sent_in_bytes_and_then_normalised(photos: Photos, workers: int) -> None:
    class Turned(KarpathyDataset):
        def image(self, row: int) -> Tensor:
            pixels = super().image(row)
            assert isinstance(pixels, Tensor)
            return pixels.flip(2)

    paths = photos({"val": 3})
    for kind in (KarpathyDataset, Turned):
        data = kind("val", *paths, image_size=8)
        sent = data.source.read([0, 1, 2]).features
        assert (sent.dtype == torch.uint8) == (kind is KarpathyDataset)
        module = ImageTextData(lambda split, data=data: data, num_workers=workers)
        (batch,) = module.val_dataloader()
        assert batch.images.features.is_contiguous()
        alone = torch.stack([pixels(data, row) for row in range(3)])
        assert torch.equal(batch.images.features, alone)
        assert torch.equal(data.source.as_floats(sent), alone)


def test_features_read_together_are_those_read_alone(photos: Photos, tmp_path: Path) -> None:
    annotations, _ = photos({"val": 3})
    features = np.random.default_rng(0).random((3, 4, 5)).astype("float16")
    np.save(tmp_path / "val_ims.npy", features)
    (tmp_path / "val_ids.txt").write_text("val_2.jpg\nval_0.jpg\nval_1.jpg\n")
    (tmp_path / "val_features.json").write_text('{"grid": [2, 2]}')
    data = KarpathyDataset("val", annotations, features=tmp_path)
    images = data.source.read([0, 2])
    assert images.boxes is not None
    assert np.array_equal(images.features.numpy(), features[[1, 0]].astype("float32"))
    for place, row in enumerate([0, 2]):
        alone = data.image(row)
        assert isinstance(alone, Regions)
        assert torch.equal(alone.features, images.features[place])
        assert alone.boxes is not None
        assert torch.equal(alone.boxes, images.boxes[place])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size is 0; expected 1 or more"),
        ({"flip": 1.5}, "flip is 1.5; expected a number in [0, 1]"),
        ({"crop_scale": (0.8, 0.5)}, "crop_scale is (0.8, 0.5); expected two shares in (0, 1]"),
        ({"mean": (0.5,)}, "mean is (0.5,); expected three numbers, one a channel"),
        ({"std": (1.0, 1.0, float("nan"))}, "std is (1.0, 1.0, nan); expected three numbers"),
    ],
)
def test_error_of_a_number_out_of_range(
    photos: Photos, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        KarpathyDataset("train", *photos(), **options)


def test_error_of_a_std_of_zero(photos: Photos) -> None:
    with pytest.raises(ValueError, match=r"std is \(0.2, 0.0, 0.2\); expected no zero"):
        KarpathyDataset("val", *photos(), std=(0.2, 0.0, 0.2))


def without_captions(annotations: Path, *names: str) -> None:
    content = json.loads(annotations.read_text())
    for entry in content["images"]:
        if not names or entry["filename"] in names:
            entry["sentences"] = []
    annotations.write_text(json.dumps(content))


@pytest.mark.filterwarnings(
    "ignore:.*does not have many workers", "ignore:.*no captions", "ignore:.*unknown"
)
def test_images_without_captions_are_not_trained_on_and_are_searched(
    photos: Photos, tmp_path: Path
) -> None:
    annotations, images = photos({"train": 4, "val": 3})
    without_captions(annotations, "train_1.jpg", "val_0.jpg", "val_2.jpg")

    def dataset(split: str) -> KarpathyDataset:
        return KarpathyDataset(split, annotations, images, image_size=16)

    with pytest.warns(UserWarning, match="1 of the 4 images of the split 'train' have no captions"):
        dataset("train")
    data = ImageTextData(
        dataset, batch_size=4, eval_batch_size=2, vocabulary_min_count=1, vocabulary_max_size=8
    )
    model = TinyMatcher()
    trainer = quiet_trainer(tmp_path, max_steps=6, limit_val_batches=1.0)
    trainer.fit(model, data)
    assert trainer.current_epoch == 2
    trained = {int(row) for batch in data.train_dataloader() for row in batch.image_ids}
    assert trained == {0, 2, 3}

    (recall,) = trainer.validate(model, data, verbose=False)
    gallery = encode(model, data.val_dataloader())
    assert (gallery.image_ids.tolist(), gallery.text_image_ids.tolist()) == ([0, 1, 2], [1] * 5)
    scores = model.score(gallery.images, gallery.texts)
    assert recall["val/i2t_r1"] == 100  # of the one image that is a query
    ranks = (scores[[0, 2]] >= scores[1]).sum(0).float()
    assert recall["val/t2i_meanr"] == pytest.approx(1 + float(ranks.mean()))


def test_photos_of_a_folder_without_annotations(photos: Photos) -> None:
    _, images = photos({"val": 2})
    (images / "a").mkdir()
    (images / "val_0.jpg").rename(images / "a" / "é 1.JPEG")
    (images / "._val_1.jpg").write_bytes(b"of a Mac")
    (images / "Thumbs.db").write_bytes(b"")
    data = KarpathyDataset("mine", None, images, image_size=16)
    assert (data.names, data.captions) == (["a/é 1.JPEG", "val_1.jpg"], [])
    assert pixels(data, 0).shape == (3, 16, 16)
    (images / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty' has no photo; expected .jpg"):
        KarpathyDataset("mine", None, images / "empty")
    with pytest.raises(ValueError, match="annotations and images are both None"):
        KarpathyDataset("mine", None, features=images)


def test_annotations_without_captions(photos: Photos) -> None:
    annotations, images = photos({"val": 2})
    without_captions(annotations)
    with pytest.raises(ValueError, match="has no caption in the split 'val'"):
        KarpathyDataset("val", annotations, images)
    data = KarpathyDataset("val", annotations, images, require_captions=False)
    assert (data.names, data.captions) == (["val_0.jpg", "val_1.jpg"], [])
    with pytest.raises(ValueError, match="split 'val' has no captions; expected at least one"):
        ImageTextData(lambda split: data).setup("validate")
    ImageTextData(lambda split: data).setup("predict")


def test_home_folder_in_paths(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    annotations, images = photos()
    monkeypatch.setenv("HOME", str(images.parent))
    data = KarpathyDataset("val", f"~/{annotations.name}", f"~/{images.name}", image_size=16)
    assert pixels(data, 1).shape == (3, 16, 16)


def test_restval_belongs_to_train_unless_told(photos: Photos) -> None:
    annotations, images = photos({"train": 2, "restval": 3, "val": 1})
    assert len(KarpathyDataset("train", annotations, images)) == 5
    assert len(KarpathyDataset("train", annotations, images, use_restval=False)) == 2
    assert len(KarpathyDataset("val", annotations, images)) == 1


def test_filepath_is_a_folder_of_photos(photos: Photos) -> None:
    annotations, images = photos(folder="val2014")
    data = KarpathyDataset("val", annotations, images, image_size=8)
    assert data.names[0] == "val2014/val_0.jpg"
    assert pixels(data, 0).shape == (3, 8, 8)


def test_max_captions(photos: Photos) -> None:
    annotations, images = photos(captions=7)
    assert len(KarpathyDataset("val", annotations, images).captions) == 10
    assert len(KarpathyDataset("val", annotations, images, max_captions=None).captions) == 14
    few = KarpathyDataset("val", annotations, images, max_captions=2)
    assert few.caption_images.tolist() == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="max_captions is -1; expected 1 or more"):
        karpathy_captions("val", annotations, max_captions=-1)


def test_error_of_missing_photos(photos: Photos) -> None:
    annotations, images = photos()
    (images / "train_1.jpg").unlink()
    (images / "train_3.jpg").unlink()
    message = r"train_1.jpg is missing, one of 2 missing images of the split 'train'"
    with pytest.raises(FileNotFoundError, match=message):
        KarpathyDataset("train", annotations, images)
    KarpathyDataset("val", annotations, images)
    assert len(KarpathyDataset("train", annotations, images, check_images=False)) == 4


def test_error_of_a_missing_photo_names_that_of_another_case(photos: Photos) -> None:
    annotations, images = photos()
    (images / "train_0.jpg").rename(images / "train_0.JPG")
    message = "train_0.jpg is missing, .* of the split 'train'. Did you mean 'train_0.JPG'?"
    with pytest.raises(FileNotFoundError, match=message):
        KarpathyDataset("train", annotations, images)


def test_links_that_lead_out_are_found_at_once(photos: Photos, tmp_path: Path) -> None:
    annotations, images = photos(folder="val2014")
    outside = tmp_path / "outside"
    (images / "val2014").rename(outside)
    (images / "val2014").symlink_to(outside)
    message = f"{images / 'val2014'} is a link to {outside}; expected a file inside"
    with pytest.raises(ValueError, match=re.escape(message)):
        KarpathyDataset("val", annotations, images)
    KarpathyDataset("val", annotations, images, follow_links=True)

    (images / "val2014").unlink()
    (images / "val2014").mkdir()
    for photo in outside.iterdir():
        (images / "val2014" / photo.name).symlink_to(photo)
    with pytest.raises(ValueError, match=r"val_0.jpg is a link to .*outside"):
        KarpathyDataset("val", annotations, images)
    KarpathyDataset("val", annotations, images, follow_links=True)


def test_error_of_max_pixels_that_no_photo_or_decoder_takes(photos: Photos) -> None:
    with pytest.raises(ValueError, match="max_pixels is 99; expected 100 or more"):
        KarpathyDataset("val", *photos(), image_size=10, max_pixels=99)
    with pytest.raises(ValueError, match="max_pixels is 200000000; expected at most 178956970"):
        KarpathyDataset("val", *photos(), image_size=10, max_pixels=200_000_000)


def test_error_of_missing_paths(photos: Photos, tmp_path: Path) -> None:
    annotations, images = photos()
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json' is not a file"):
        KarpathyDataset("val", tmp_path / "nowhere.json", images)
    with pytest.raises(FileNotFoundError, match="nowhere' is not a folder"):
        KarpathyDataset("val", annotations, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="images and features are both None"):
        KarpathyDataset("val", annotations)


def flickr8k() -> Path:
    folder = Path(__file__).parents[2] / ".." / "shared" / "data" / "flickr8k"
    if not folder.is_dir():
        pytest.skip(f"no photos at {folder}")
    return folder


def test_smoke_on_the_real_photos_of_flickr8k() -> None:
    folder = flickr8k()
    for split, count in (("train", 6000), ("val", 1000)):
        data = KarpathyDataset(split, folder / "dataset_flickr8k.json", folder / "images")
        assert (len(data), len(data.captions)) == (count, 5 * count)
        for row in range(0, count, count // 4):
            image = pixels(data, row)
            assert image.shape == (3, 224, 224)
            assert image.isfinite().all()
            assert image.std() > 0.1


def test_preprocessing_of_one_value_or_of_its_parts(photos: Photos) -> None:
    own = Preprocessing(size=16, crop=0.5, mean=HALF, std=HALF)
    data = KarpathyDataset("val", *photos(), preprocessing=own)
    assert (data.preprocessing, data.image_size) == (own, 16)
    parts = KarpathyDataset("val", *photos(), image_size=16, mean=HALF, std=HALF)
    assert parts.preprocessing == replace(own, crop=1.0)
    assert pixels(data, 0).shape == pixels(parts, 0).shape == (3, 16, 16)
    assert not torch.equal(pixels(data, 0), pixels(parts, 0))
    with pytest.raises(ValueError, match="preprocessing is given, and image_size, mean or std too"):
        KarpathyDataset("val", *photos(), preprocessing=own, image_size=32)


def test_checkpoints_carry_the_preprocessing(photos: Photos) -> None:
    def data(side: int) -> ImageTextData:
        own = Preprocessing(size=side)
        made = ImageTextData(
            lambda split: KarpathyDataset(split, *photos(), preprocessing=own), batch_size=2
        )
        made.setup("fit")
        return made

    state = data(16).state_dict()
    assert Preprocessing.from_dict(state["preprocessing"]) == Preprocessing(size=16)
    data(16).load_state_dict(state)
    with pytest.warns(UserWarning, match=r"trained on pixels of \{'size': 16, .* has Prep.*size=8"):
        data(8).load_state_dict(state)
