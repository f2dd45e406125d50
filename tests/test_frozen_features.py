"""What the features of a cache are named by, and what is extracted into it; no model is run."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from picture_files import jpegs, write_folder

import itmkit.frozen_features
from itmkit.checks import InputError
from itmkit.data import CaptionedFolder
from itmkit.frozen_features import FrozenFeatureData


class Asked(Exception):
    """Features were asked for: their folder, and what a model is to be called with."""


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with photos, captions, two files of weights and a text model."""
    write_folder(tmp_path / "photos", jpegs(12))
    rows = [f"p{row}.jpg,picture {row}" for row in range(12)]
    (tmp_path / "c.csv").write_text("\n".join(["file_name,caption", *rows]))
    for name in ("a.pt", "b.pt", "text/weights"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)

    def asked(*given: Any, **options: Any) -> None:
        folder = next(one for one in given if isinstance(one, Path) and one.parent.name == "cache")
        raise Asked(folder.name, given, options)

    for name in ("extract_by_timm", "extract_by_transformers"):
        monkeypatch.setattr(itmkit.frozen_features, name, asked)
    return tmp_path


def data(photos: Path, dataset: dict[str, Any] | None = None, **options: Any) -> FrozenFeatureData:
    folder = partial(CaptionedFolder, photos=photos / "photos", captions=photos / "c.csv")
    given = {"image_checkpoint": photos / "a.pt", "cache": photos / "cache"} | options
    return FrozenFeatureData(partial(folder, **dataset or {}), "test_byobnet", **given)


def asked(photos: Path, split: str = "train", **options: Any) -> tuple[str, Any, dict[str, Any]]:
    with pytest.raises(Asked) as error:
        data(photos, **options).split(split)
    name, given, named = error.value.args
    return name, given, named


@pytest.mark.parametrize(
    ("options", "is_other"),
    [
        ({"image_size": 64}, True),
        ({"image_checkpoint_by_order": True}, True),
        ({"image_checkpoint": "b.pt"}, True),
        ({"image_views": 3}, True),
        ({"image_mirror_mean": True}, True),
        ({"image_mirror_mean": True, "split": "val"}, True),
        ({"image_views": 3, "split": "val"}, False),
        ({"dataset": {"flip": 0.25}}, False),  # without views nothing is drawn
        ({"dataset": {"image_size": 64}}, False),  # that of the model counts
    ],
    ids=str,
)
def test_a_folder_is_named_by_what_changes_features(
    options: dict[str, Any], is_other: bool, photos: Path
) -> None:
    split = options.get("split", "train")
    changed = options | {"split": split}
    if "image_checkpoint" in options:
        changed["image_checkpoint"] = photos / options["image_checkpoint"]
    assert (asked(photos, split)[0] != asked(photos, **changed)[0]) == is_other


def test_views_are_named_by_how_they_are_drawn(photos: Path) -> None:
    drawn = [{}, {"crop_scale": (0.3, 1.0)}, {"flip": 0.25}]
    names = {asked(photos, image_views=3, dataset=own)[0] for own in drawn}
    assert len(names) == len(drawn)


def test_a_photo_that_changed_is_another(photos: Path) -> None:
    before = asked(photos)[0]
    name = data(photos).dataset("train").names[0]
    (photos / "photos" / name).write_bytes(jpegs(13)["p12.jpg"])
    assert asked(photos)[0] != before


def test_error_of_a_photo_that_is_gone(photos: Path) -> None:
    name = data(photos).dataset("train").names[0]
    (photos / "photos" / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing, or not a file"):
        data(photos, {"check_images": False}).split("train")


def test_views_of_training_photos_alone_are_drawn(photos: Path) -> None:
    for split, views in (("train", 3), ("val", 1)):
        _, (plain, *_), options = asked(photos, split, image_views=3)
        assert options["views"] == views
        assert not plain.source.augments
        augmented = options["augmented"]
        assert augmented.augments if views > 1 else augmented is None


def test_token_features_are_named_by_the_model_and_the_captions(photos: Path) -> None:
    def name(split: str = "train") -> str:
        own = data(photos, text_model=photos / "text")
        own.split = own.dataset  # as if its images were extracted
        with pytest.raises(Asked) as error:
            own.text_folder(split)
        return str(error.value.args[0])

    before = name()
    assert name() == before != name("val")
    (photos / "text/weights").write_text("changed weights")
    assert name() != before
