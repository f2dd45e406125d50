from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import get_pretrained_cfg

from itmkit.checks import InputError
from itmkit.data import Preprocessing


def noise(width: int = 50, height: int = 40) -> np.ndarray[Any, Any]:
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


MODELS = ["tf_efficientnet_lite0", "resnet50.a1_in1k", "vit_base_patch16_siglip_224"]


@pytest.mark.parametrize("name", MODELS)
def test_pixels_are_those_that_timm_evaluates_the_model_with(name: str) -> None:
    config = resolve_data_config(pretrained_cfg=get_pretrained_cfg(name).to_dict())
    photo = Image.fromarray(noise(400, 300))
    own = Preprocessing.for_timm(name)
    expected = create_transform(**config)(photo)
    torch.testing.assert_close(own.normalise(own(photo)), expected, atol=1e-6, rtol=0)


def test_arrays_photos_and_other_modes_give_the_same_bytes() -> None:
    own, array = Preprocessing(size=16), noise()
    pixels = own(array)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 16, 16))
    assert torch.equal(pixels, own(Image.fromarray(array)))
    grey = Image.fromarray(array).convert("L")
    assert torch.equal(own(grey), own(grey.convert("RGB")))


def test_stacks_are_normalised_as_single_images() -> None:
    own = Preprocessing(size=8, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    pixels = torch.stack([own(noise()), own(noise(40, 60))])
    floats = own.normalise(pixels)
    naive = (pixels.double() / 255 - torch.tensor(own.mean).view(3, 1, 1)) / torch.tensor(
        own.std
    ).view(3, 1, 1)
    torch.testing.assert_close(floats, naive.float(), atol=1e-6, rtol=0)
    assert torch.equal(floats[1], own.normalise(pixels[1]))


@pytest.mark.parametrize(
    "own",
    [
        Preprocessing(),
        Preprocessing(384, 0.9, (0, 0, 0), (1, 1, 1), "bilinear", "squash"),
        Preprocessing.for_timm("resnet50", size=64, crop=1),
    ],
)
def test_round_trip_in_json_and_yaml(own: Preprocessing) -> None:
    for dump, load in ((json.dumps, json.loads), (yaml.safe_dump, yaml.safe_load)):
        assert Preprocessing.from_dict(load(dump(own.to_dict()))) == own
    assert Preprocessing.from_dict({}) == Preprocessing()


def test_crop_keeps_its_share_of_the_middle() -> None:
    array = np.zeros((100, 100, 3), dtype=np.uint8)
    array[25:75, 25:75] = 255
    own = Preprocessing(size=50, crop=0.5)
    assert own.scaled_side == 100
    assert bool((own(array) == 255).all())
    assert own.normalise(replace(own, crop=1.0)(array)).numel() ** 0.5 > 60
    assert not bool((replace(own, crop=1.0)(array) == 255).all())


def test_random_parts_follow_the_global_generators() -> None:
    import random

    own, array = Preprocessing(size=16), noise()

    def drawn(seed: int) -> torch.Tensor:
        random.seed(seed)
        torch.manual_seed(seed)
        return own.augmented(array, scale=(0.3, 0.6), flip=0.5)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Preprocessing(size=0), "size is 0; expected 1 or more"),
        (lambda: Preprocessing(crop=0.0), "crop is 0.0; expected a share in (0, 1]"),
        (lambda: Preprocessing(mean=(0.5,)), "mean is (0.5,); expected three numbers"),  # type: ignore[arg-type]
        (lambda: Preprocessing(std=(1, 0, 1)), "std is (1.0, 0.0, 1.0); expected no zero"),
        (lambda: Preprocessing(interpolation="cubic"), "interpolation is 'cubic'; expected one"),  # type: ignore[arg-type]
        (lambda: Preprocessing.for_timm("resnet51"), "Did you mean 'resnet51q'?"),
        (lambda: Preprocessing.for_timm("resnet50.none"), "model is 'resnet50.none'"),
        (
            lambda: Preprocessing.from_dict({"sise": 3}, source="preprocessing in x.json"),
            "preprocessing in x.json is {'sise': 3}; expected the fields size, crop",
        ),
        (lambda: Preprocessing.from_dict({"crop": 2}), "preprocessing: crop is 2; expected"),
        (lambda: Preprocessing()(torch.zeros(3, 4, 4)), "photo is a torch.float32 tensor"),  # type: ignore[arg-type]
        (lambda: Preprocessing()(noise()[..., :2]), "of the shape (40, 50, 2)"),
        (lambda: Preprocessing()(noise() / 255), "photo is a numpy.ndarray of float64"),
    ],
)
def test_error_of(make: Any, told: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert told in str(caught.value)


def processors() -> dict[str, Any]:
    """Image processors as the models on the hub have them."""
    import transformers as t

    align = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "resample": 2}
    align |= {"do_center_crop": True, "do_normalize": False, "include_top": False}
    small = {"size": {"shortest_edge": 64}, "crop_size": {"height": 56, "width": 56}}
    return {
        "clip": t.CLIPImageProcessorPil(),
        "clip_cut": t.CLIPImageProcessorPil(**small),
        "siglip": t.SiglipImageProcessorPil(size={"height": 48, "width": 48}),
        "align": t.EfficientNetImageProcessorPil(**align),
        "efficientnet": t.EfficientNetImageProcessorPil(),
    }


@pytest.mark.parametrize("name", ["clip", "clip_cut", "siglip", "align", "efficientnet"])
def test_pixels_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    small = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    photo = Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC)
    processor = processors()[name]
    processor.save_pretrained(tmp_path)
    own = Preprocessing.for_transformers(tmp_path)
    wanted = processor(photo, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(own.normalise(own(photo)), wanted, atol=1e-5, rtol=0)
    assert Preprocessing.for_transformers(tmp_path, size=32).size == 32


def test_siglip_2_for_any_size_gets_its_square(tmp_path: Path) -> None:
    from transformers import Siglip2ImageProcessorPil

    Siglip2ImageProcessorPil(max_num_patches=9, patch_size=16).save_pretrained(tmp_path)
    own = Preprocessing.for_transformers(tmp_path)
    assert (own.size, own.crop_mode, own.mean[0]) == (48, "squash", 0.5)


def test_error_of_an_image_processor_that_is_no_square_or_not_there(tmp_path: Path) -> None:
    from transformers import SiglipImageProcessorPil

    with pytest.raises(InputError, match=r"^name_or_path is .*; expected a model on the hub or"):
        Preprocessing.for_transformers(tmp_path)
    SiglipImageProcessorPil(size={"height": 48, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"scales to .*48.* and cuts .*; expected a square"):
        Preprocessing.for_transformers(tmp_path)
