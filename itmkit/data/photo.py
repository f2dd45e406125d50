"""A photo from disk, whatever it was saved as, as upright RGB; and which files may be one."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image, ImageOps

from itmkit.checks import InputError
from itmkit.data.dataset import BadSampleError

#: What Pillow may decode; all else is refused, above all EPS, for which it starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")

_NOT_OF_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_photo(path: Path, *, side: int, max_pixels: int) -> Image.Image:
    """Decode a photo: turned upright as its EXIF says, transparent parts over white, as RGB.

    Args:
        path: of a JPEG, PNG, WebP, BMP, GIF, PPM or TIFF file.
        side: to which the shorter side will be scaled; a JPEG much larger is decoded smaller.
        max_pixels: most pixels of the photo, and of the photo scaled.

    Raises:
        BadSampleError: if it is gone, not readable, or has more pixels; before they are decoded.
    """
    if not path.is_file():  # a pipe would be waited for, for ever
        raise BadSampleError(f"{path} is missing, or not a file")
    try:
        with Image.open(path, formats=FORMATS) as photo:
            _check_size(path, photo.size, side, max_pixels)
            # a JPEG is decoded at half, a quarter or an eighth, where that is large enough
            photo.draft("RGB", (2 * side, 2 * side))
            ImageOps.exif_transpose(photo, in_place=True)  # else a photo that is upright is copied
            return _rgb(photo)
    except (BadSampleError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadSampleError(f"{path} has more than max_pixels={max_pixels}: {error}") from error
    except Exception as error:  # bytes that are no photo raise nearly anything in Pillow
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        raise BadSampleError(f"{path} is not a readable image: {error}") from error


def check_name(name: str, source: Path) -> None:
    """Refuse a name that leads out of its folder, or that a line of text cannot hold.

    Args:
        name: relative path, as ``source`` has it.
        source: the file to name in the error.

    Raises:
        InputError: if it is refused.
    """
    paths = PurePosixPath(name), PureWindowsPath(name)
    leads_out = any(path.anchor or ".." in path.parts for path in paths)
    if leads_out or name in ("", ".") or _NOT_OF_A_LINE.search(name):
        raise InputError(f"{source} names {name!r}; expected a file inside the image folder")


def check_inside(path: Path, folder: Path) -> None:
    """Refuse a path that a link leads out of its folder. The folder may itself be a link.

    Raises:
        InputError: if it leads out.
    """
    real, root = os.path.realpath(path), os.path.realpath(folder)
    if os.path.commonpath([real, root]) != root:
        raise InputError(
            f"{path} is a link to {real}; expected a file inside the image folder {folder}, or "
            "follow_links=True"
        )


def _check_size(path: Path, size: tuple[int, int], side: int, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadSampleError(
            f"{path} has {width} x {height} pixels; expected at most max_pixels={max_pixels}"
        )
    if side * side * max(size) > max_pixels * min(size):
        raise BadSampleError(
            f"{path} has {width} x {height} pixels, which with {side} on the shorter side are "
            f"more than max_pixels={max_pixels}"
        )


def _rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith("I"):  # 16 bits; Pillow would cut off what is brighter than 255
        values = np.asarray(photo)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise InputError("it has 32 bits a channel; expected 8 or 16")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if photo.mode == "F":
        raise InputError("it has floating-point pixels; expected 8 or 16 bits a channel")
    if photo.has_transparency_data:
        rgba = photo.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return photo if photo.mode == "RGB" else photo.convert("RGB")
