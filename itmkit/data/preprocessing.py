"""From a photo to the pixels of a model: one description that all parts of itmkit share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, cast, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from itmkit.checks import InputError, check_choice, check_count, check_share, did_you_mean, type_of
from itmkit.files import user_path
from itmkit.lazy_imports import import_timm

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: Filter that scales a photo, by its name in Pillow and timm.
Interpolation = Literal["bicubic", "bilinear", "nearest", "box", "hamming", "lanczos"]
#: What becomes of a photo that is not square, as timm names it.
CropMode = Literal["center", "squash", "border"]


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes the pixels of a model. A plain value: equal fields, equal pixels.

    The photo is scaled so that its shorter side is ``size / crop``, and its middle cut out. Data
    sets, ``itmkit extract`` and checkpoints hold one; :meth:`to_dict` is what YAML and JSON store.

    Args:
        size: side of the square image in pixels.
        crop: share in (0, 1] of the scaled shorter side that the cut keeps; timm's ``crop_pct``.
        mean: of the three channels, subtracted from pixels in [0, 1].
        std: of the three channels, divided by.
        interpolation: filter of the scaling.
        crop_mode: ``"center"``: what is outside the square is cut off; ``"squash"``: both sides
            are scaled to the square; ``"border"``: the longer side fits, the rest is black.

    Raises:
        InputError: if a value is out of its range.

    Example:
        >>> own = Preprocessing(size=2, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> pixels = own(np.full((4, 6, 3), 255, dtype=np.uint8))
        >>> pixels.dtype, own.normalise(pixels)[0].tolist()
        (torch.uint8, [[1.0, 1.0], [1.0, 1.0]])
        >>> Preprocessing.from_dict(own.to_dict()) == own
        True
    """

    size: int = 224
    crop: float = 1.0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Interpolation = "bicubic"
    crop_mode: CropMode = "center"

    def __post_init__(self) -> None:
        check_count(size=self.size)
        if not 0 < self.crop <= 1:
            raise InputError(f"crop is {self.crop!r}; expected a share in (0, 1]")
        for name in ("mean", "std"):
            numbers = tuple(getattr(self, name))
            if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
                raise InputError(f"{name} is {numbers}; expected three numbers, one a channel")
            object.__setattr__(self, name, tuple(map(float, numbers)))
        if not all(self.std):
            raise InputError(f"std is {self.std}; expected no zero")
        check_choice("interpolation", self.interpolation, Interpolation)
        check_choice("crop_mode", self.crop_mode, CropMode)

    @classmethod
    def for_timm(cls, name: str, *, size: int | None = None, crop: float | None = None) -> Self:
        """What a timm model was trained for, as timm knows it; nothing is fetched.

        Args:
            name: of the model, with or without the tag of its weights.
            size: side of the image instead of the model's.
            crop: share that the cut keeps instead of the model's; 1 keeps most of a photo, as its
                captions may speak of all of it.

        Raises:
            InputError: if timm knows no such model.

        Example:
            >>> Preprocessing.for_timm("tf_efficientnet_lite0").crop
            0.875
        """
        timm = import_timm()
        try:
            known = timm.get_pretrained_cfg(name) if timm.is_model(name.partition(".")[0]) else None
        except RuntimeError:  # no such tag
            known = None
        if known is None:
            close = did_you_mean(name, [*timm.list_models(), *timm.list_models(pretrained=True)])
            raise InputError(f"model is {name!r}; expected the name of a timm model{close}")
        interpolation = known.interpolation
        if interpolation not in get_args(Interpolation):  # "random", of training
            interpolation = "bicubic"
        return cls(
            size=known.input_size[-1] if size is None else size,
            crop=known.crop_pct if crop is None else crop,
            mean=cast(tuple[float, float, float], tuple(known.mean)),
            std=cast(tuple[float, float, float], tuple(known.std)),
            interpolation=cast(Interpolation, interpolation),
            crop_mode=cast(CropMode, known.crop_mode or "center"),
        )

    @classmethod
    def for_transformers(cls, name_or_path: str | Path, *, size: int | None = None) -> Self:
        """What an image model of transformers was trained for, by its image processor.

        Differs from that where its images would not be square: the model gets a square.

        Args:
            name_or_path: name of a model on the hub, or a local folder.
            size: side of the image instead of the processor's.

        Raises:
            InputError: if there is no image processor, or one that does more than scale, cut and
                normalise.
        """
        from transformers import AutoImageProcessor

        from itmkit.pretrained import fetching, hub_token

        name = str(user_path(name_or_path))
        with fetching("name_or_path", name):
            processor = AutoImageProcessor.from_pretrained(
                name, token=hub_token(), trust_remote_code=False
            )
        return cls(**_of_processor(processor, size, f"the image processor of {name!r}"))

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], *, source: str = "preprocessing") -> Self:
        """The value that :meth:`to_dict` gave.

        Args:
            content: its fields; those left out have their defaults.
            source: file or argument that it is from, for errors.

        Raises:
            InputError: with ``source``, if it is no mapping of such fields.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(content, Mapping) or not content.keys() <= set(names):
            raise InputError(f"{source} is {content!r}; expected the fields {', '.join(names)}")
        try:
            return cls(**content)
        except (InputError, TypeError) as error:
            raise InputError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The fields as numbers, strings and lists: what JSON, YAML and checkpoints can hold."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @property
    def scaled_side(self) -> int:
        """The shorter side in pixels of the scaled photo, before the cut."""
        return math.floor(self.size / self.crop)

    def __call__(self, photo: Image.Image | np.ndarray[Any, Any]) -> Tensor:
        """The pixels of a photo as bytes ``(3, size, size)``.

        Args:
            photo: upright; a PIL image, or an array ``(H, W, 3)`` of bytes, red first.

        Raises:
            InputError: if it is neither.
        """
        transform = _plain_transform(self.size, self.crop, self.interpolation, self.crop_mode)
        return cast(Tensor, transform(_as_image(photo)))

    def augmented(
        self,
        photo: Image.Image | np.ndarray[Any, Any],
        *,
        scale: tuple[float, float] = (0.5, 1.0),
        flip: float = 0.0,
    ) -> Tensor:
        """As a call, but of a random part of the photo; draws from the global generators.

        Args:
            photo: as of a call.
            scale: smallest and largest share of the photo that the part covers.
            flip: probability that it is mirrored.
        """
        transform = _random_transform(self.size, self.interpolation, (scale[0], scale[1]), flip)
        return cast(Tensor, transform(_as_image(photo)))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Bytes ``(…, 3, H, W)`` as floats less the mean and divided by the standard deviation.

        Page-locked memory gives page-locked memory.
        """
        floats = torch.empty(pixels.shape, pin_memory=pixels.is_pinned())
        # In numpy: torch would share so little work among its threads, and wait for them.
        array = floats.numpy()
        array[...] = pixels.numpy()
        array /= 255
        array -= np.array(self.mean, "float32")[:, None, None]
        array /= np.array(self.std, "float32")[:, None, None]
        return floats


def check_augmentation(crop_scale: tuple[float, float], flip: float) -> None:
    """Raise unless a random part can be cut so.

    Raises:
        InputError: with the argument and its value.
    """
    check_share(flip=flip)
    if not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise InputError(f"crop_scale is {crop_scale}; expected two shares in (0, 1], ascending")


def _of_processor(processor: Any, size: int | None, source: str) -> dict[str, Any]:
    """The fields of an image processor of transformers."""

    def read(name: str, default: Any = None) -> Any:
        value = getattr(processor, name, None)
        return default if value is None else value

    scaled = dict(read("size", {}))
    if hasattr(processor, "max_num_patches"):  # SigLIP 2 for any size, of which this is the square
        whole = math.isqrt(processor.max_num_patches) * processor.patch_size
        scaled = {"height": whole, "width": whole}
    shorter = scaled.get("shortest_edge") or scaled.get("height")
    cut = dict(read("crop_size", {})) if read("do_center_crop") else {"height": shorter}
    side = cut.get("height")
    sides = {scaled.get("height"), scaled.get("width")}, {side, cut.get("width", side)}
    if (
        not read("do_resize")
        or not shorter
        or not side
        or side > shorter
        or max(map(len, sides)) > 1
    ):
        raise InputError(f"{source} scales to {scaled} and cuts {cut}; expected a square")
    # Its steps as one, factor · pixel + offset, of pixels in [0, 1]
    factor = np.full(3, 255 * read("rescale_factor", 1 / 255) if read("do_rescale") else 255.0)
    offset = np.full(3, -1.0 if read("rescale_offset") else 0.0)
    if read("do_normalize"):
        factor = factor / read("image_std")
        offset = (offset - read("image_mean")) / read("image_std")
    if read("include_top"):
        factor, offset = factor / read("image_std"), offset / read("image_std")
    return {
        "size": side if size is None else size,
        "crop": side / shorter,
        "mean": tuple(-offset / factor + 0.0),  # and no -0
        "std": tuple(1 / factor),
        "interpolation": Image.Resampling(read("resample", 3)).name.lower(),
        "crop_mode": "center" if scaled.get("shortest_edge") else "squash",
    }


def _as_image(photo: Image.Image | np.ndarray[Any, Any]) -> Image.Image:
    if isinstance(photo, Image.Image):
        return photo if photo.mode == "RGB" else photo.convert("RGB")
    fits = isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.ndim == 3
    if not fits or photo.shape[2] != 3 or not photo.size:
        shape = f" of the shape {photo.shape}" if isinstance(photo, np.ndarray) else ""
        raise InputError(
            f"photo is {type_of(photo)}{shape}; expected a PIL image or an array (H, W, 3) of uint8"
        )
    return Image.fromarray(photo)


@lru_cache(maxsize=64)
def _plain_transform(size: int, crop: float, interpolation: str, crop_mode: str) -> Any:
    import_timm()
    from timm.data.transforms_factory import create_transform

    return create_transform(
        (3, size, size),
        interpolation=interpolation,
        crop_pct=crop,
        crop_mode=crop_mode,
        normalize=False,
    )


@lru_cache(maxsize=64)
def _random_transform(
    size: int, interpolation: str, scale: tuple[float, float], flip: float
) -> Any:
    import_timm()
    from timm.data.transforms_factory import create_transform

    return create_transform(
        (3, size, size),
        is_training=True,
        scale=scale,
        ratio=(3 / 4, 4 / 3),
        hflip=flip,
        color_jitter=0.0,
        interpolation=interpolation,
        normalize=False,
    )
