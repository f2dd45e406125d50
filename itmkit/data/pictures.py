"""Pictures as a user has them: paths, PIL images, arrays, tensors."""

from __future__ import annotations

import os
from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from itmkit.checks import InputError, type_of
from itmkit.data.photo import decode_photo, read_photo, upright_rgb
from itmkit.data.preprocessing import Preprocessing
from itmkit.files import user_path

#: What is taken for a picture.
Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray[Any, Any] | Tensor

MAX_PIXELS = 100_000_000
_KINDS = (
    "a path, the bytes of a file, a PIL image, an array of uint8 (height, width, 3), or a tensor "
    "of floats (3, height, width) in [0, 1]"
)


def picture_pixels(
    picture: Picture, preprocessing: Preprocessing, *, name: str, max_pixels: int = MAX_PIXELS
) -> Tensor:
    """The pixels of one picture as bytes ``(3, size, size)``.

    Grey pictures, transparent ones (over white), those of 16 bits and of CMYK become RGB; one that
    EXIF says to lie on its side is turned.

    Args:
        picture: a path, the bytes of a file, a PIL image, an array of uint8 ``(H, W, 3)``, or a
            tensor of floats ``(3, H, W)`` in [0, 1], which are rounded to bytes.
        preprocessing: how pictures become pixels.
        name: of the picture, for errors.
        max_pixels: most pixels of a file, before they are decoded.

    Raises:
        BadSampleError: a file that is gone, is no picture, or has too many pixels.
        InputError: what is no picture, or one that cannot be decoded.
    """
    if isinstance(picture, (str, os.PathLike)):
        if not os.fspath(picture):
            raise InputError(f"{name} is ''; expected {_KINDS}")
        path = user_path(picture)
        photo = read_photo(path, side=preprocessing.scaled_side, max_pixels=max_pixels)
        return preprocessing(photo)
    if isinstance(picture, bytes):
        side = preprocessing.scaled_side
        return preprocessing(decode_photo(BytesIO(picture), name, side=side, max_pixels=max_pixels))
    if isinstance(picture, Image.Image):
        try:
            return preprocessing(upright_rgb(picture))
        except (OSError, SyntaxError, ValueError) as error:  # of a file that was opened, not read
            raise InputError(f"{name} is not a readable image: {error}") from error
    if isinstance(picture, Tensor):
        return preprocessing(_bytes(picture, name))
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.ndim != 3:
        shape = f" of the shape {picture.shape}" if isinstance(picture, np.ndarray) else ""
        raise InputError(f"{name} is {type_of(picture)}{shape}; expected {_KINDS}")
    if picture.shape[2] != 3 or not picture.size:
        raise InputError(f"{name} is an array of the shape {picture.shape}; expected {_KINDS}")
    return preprocessing(picture)


def _bytes(picture: Tensor, name: str) -> np.ndarray[Any, Any]:
    fits = picture.is_floating_point() and picture.ndim == 3 and picture.shape[0] == 3
    if not fits or not picture.numel():
        raise InputError(
            f"{name} is {type_of(picture)} of the shape {tuple(picture.shape)}; expected {_KINDS}"
        )
    low, high = (float(value) for value in picture.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(f"{name} has values from {low:g} to {high:g}; expected [0, 1]")
    values = (picture.detach().cpu().float() * 255).round().to(torch.uint8)
    array: np.ndarray[Any, Any] = values.permute(1, 2, 0).contiguous().numpy()
    return array
