"""A photo from disk, whatever it was saved as, as upright RGB; and which files may be one."""

from __future__ import annotations

import errno
import os
import unicodedata
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from itmkit.checks import InputError, check_count
from itmkit.data.captions import check_name
from itmkit.data.images import BadSampleError
from itmkit.files import check_folder

#: What Pillow may decode; all else is refused, above all EPS, for which it starts Ghostscript.
#: AVIF and HEIF are decoded where there is a decoder.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM", "TIFF")

#: Endings, in lower case, of the names of photos in a folder without annotations.
SUFFIXES = (
    ".jpg .jpeg .jpe .jfif .mpo .png .webp .bmp .gif .ppm .pgm .pbm .pnm .tif .tiff .avif .heic "
    ".heif .hif"
).split()

_OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_photo(path: Path, *, side: int, max_pixels: int) -> Image.Image:
    """Decode a photo: turned upright as its EXIF says, transparent parts over white, as RGB.

    Args:
        path: of a JPEG, PNG, WebP, BMP, GIF (of moving ones the first picture), PPM or TIFF file,
            whatever its name ends in; of an AVIF file with Pillow 11.3 or newer, and of a HEIC file
            with ``pillow-heif``: the extra ``itmkit[heif]`` has both.
        side: to which the shorter side will be scaled; a JPEG much larger is decoded smaller.
        max_pixels: most pixels of the photo, and of the photo scaled.

    Raises:
        BadSampleError: if it is gone, not readable, or has more pixels; before they are decoded.
    """
    if not path.is_file():  # a pipe would be waited for, for ever
        raise BadSampleError(f"{path} is missing, or not a file")
    try:
        file = path.open("rb")
    except OSError as error:
        if error.errno in _OF_THE_MACHINE:
            raise
        raise BadSampleError(f"{path} is not a readable image: {error}") from error
    with file:
        return decode_photo(file, str(path), side=side, max_pixels=max_pixels)


def decode_photo(file: IO[bytes], name: str, *, side: int, max_pixels: int) -> Image.Image:
    """Decode a photo from an open file; see :func:`read_photo`.

    Args:
        file: open for reading bytes, at its start.
        name: of the photo, for errors.
        side: to which the shorter side will be scaled.
        max_pixels: most pixels of the photo, and of the photo scaled.

    Raises:
        BadSampleError: if it is no photo, or has more pixels; before they are decoded.
    """
    try:
        try:
            return _decoded(name, file, side, max_pixels)
        except ValueError as error:
            file.seek(0)
            if isinstance(error, InputError) or file.read(len(_PNG)) != _PNG:
                raise
            # Pillow refuses a PNG with long texts, which could fill the memory
            file.seek(0)
            return _decoded(name, _without_metadata(file.read()), side, max_pixels)
    except (BadSampleError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadSampleError(f"{name} has more than max_pixels={max_pixels}: {error}") from error
    except Exception as error:  # bytes that are no photo raise nearly anything in Pillow
        if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
            raise
        if isinstance(error, UnidentifiedImageError):
            error = InputError(
                f"cannot identify its format; expected {', '.join(FORMATS)}, AVIF or HEIC"
            )
        raise BadSampleError(f"{name} is not a readable image: {error}") from error


def upright_rgb(photo: Image.Image) -> Image.Image:
    """A picture turned upright as its EXIF says, transparent parts over white, as RGB.

    Raises:
        InputError: if it has more than 16 bits a channel.
    """
    photo.load()  # Pillow turns some formats itself, and then takes the orientation away
    turn = _UPRIGHT.get(_orientation(photo))
    rgb = _rgb(photo)
    if turn is None:
        return rgb
    turned = rgb.transpose(turn)
    turned.info = {}  # with its EXIF it would be turned again
    return turned


def check_max_pixels(max_pixels: int, side: int = 1) -> None:
    """Raise unless photos of so many pixels can be decoded, and scaled to a shorter side.

    Raises:
        InputError: with the limit.
    """
    check_count(max_pixels=max_pixels)
    if max_pixels < side**2:
        raise InputError(
            f"max_pixels is {max_pixels}; expected {side**2} or more, the square of the side that "
            "photos are scaled to"
        )
    most = Image.MAX_IMAGE_PIXELS and 2 * Image.MAX_IMAGE_PIXELS
    if most and max_pixels > most:
        raise InputError(
            f"max_pixels is {max_pixels}; expected at most {most}, twice PIL.Image.MAX_IMAGE_PIXELS"
        )


def photo_names(folder: Path, follow_links: bool) -> list[str]:
    """As :func:`find_photo_names`, of which a line of text can hold each.

    Raises:
        FileNotFoundError: if there is no such folder.
        InputError: if it has no photo, or one with another name.
    """
    names = find_photo_names(folder, follow_links)
    for name in names:
        check_name(name, folder)
    return names


def find_photo_names(folder: Path, follow_links: bool, *, argument: str = "images") -> list[str]:
    """The photos in a folder and the folders inside it, by the endings of their names, sorted.

    Hidden files and folders are left out.

    Args:
        folder: that is searched.
        follow_links: whether links to folders are followed.
        argument: name of ``folder``, for errors.

    Raises:
        FileNotFoundError: if there is no such folder.
        InputError: if it has no photo.
    """
    check_folder(argument, folder)
    names = []
    for parent, folders, files in os.walk(folder, followlinks=follow_links):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not (follow_links and _leads_up(parent, name))
        ]
        inside = Path(parent).relative_to(folder)
        names += [
            (inside / name).as_posix()
            for name in files
            if not name.startswith(".") and PurePosixPath(name).suffix.lower() in SUFFIXES
        ]
    if not names:
        raise InputError(f"{argument}={str(folder)!r} has no photo; expected {' '.join(SUFFIXES)}")
    return sorted(names)


def _leads_up(parent: str, name: str) -> bool:
    """Whether a folder is a link to one that it is in, so that a walk would never end."""
    return Path(os.path.realpath(parent)).is_relative_to(os.path.realpath(Path(parent, name)))


def find_photo(folder: Path, name: str) -> Path:
    """The path of a photo, also where name and file write accents differently (NFC or NFD)."""
    path = folder / name
    if name.isascii() or path.exists():
        return path
    others = (folder / unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((other for other in others if other.exists()), path)


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


def _decoded(name: str, file: IO[bytes], side: int, max_pixels: int) -> Image.Image:
    start = file.read(64)
    file.seek(0)
    if not start:
        raise InputError("the file is empty")
    formats = _formats(name, start)
    with Image.open(file, formats=formats) as photo:
        _check_size(name, photo.size, side, max_pixels)
        if photo.format in ("JPEG", "MPO"):
            # decoded at half, a quarter or an eighth, where that is large enough
            photo.draft("RGB", (2 * side, 2 * side))
        return upright_rgb(photo)


def decoded_formats() -> list[str]:
    """The formats that can be decoded here, those of optional packages included."""
    optional = {"AVIF": features.check("avif"), "HEIF": find_spec("pillow_heif") is not None}
    return [*FORMATS, *(name for name, is_there in optional.items() if is_there)]


def _formats(name: str, start: bytes) -> tuple[str, ...]:
    if start[4:8] != b"ftyp":
        return FORMATS
    end = min(int.from_bytes(start[:4], "big"), len(start))
    brands = {start[8:12], *(start[i : i + 4] for i in range(16, end, 4))}
    if brands & {b"avif", b"avis"}:
        if not features.check("avif"):
            raise BadSampleError(f"{name} is an AVIF image: pip install 'itmkit[heif]' to read it")
        return ("AVIF",)
    if not any(brand[:3] in (b"hei", b"hev", b"mif", b"msf") for brand in brands):
        return FORMATS  # a film: of no format that is read
    try:
        from pillow_heif import register_heif_opener
    except ImportError as error:
        raise BadSampleError(
            f"{name} is a HEIC image: pip install 'itmkit[heif]' to read it"
        ) from error
    if "HEIF" not in Image.OPEN:
        register_heif_opener()
    return ("HEIF",)


def _orientation(photo: Image.Image) -> int:
    """The orientation in EXIF or XMP, 1 (upright) where there is none to read."""
    try:
        value = photo.getexif().get(ExifTags.Base.Orientation, 1)
        return int(value[0] if isinstance(value, tuple) else value)
    except Exception:  # Pillow raises nearly anything on EXIF that is none
        return 1


def _without_metadata(png: bytes) -> IO[bytes]:
    """A PNG file without its texts and colour profile; an orientation in a text is lost."""
    kept, place = [_PNG], len(_PNG)
    while place < len(png):
        start, place = place, place + 12 + int.from_bytes(png[place : place + 4], "big")
        if png[start + 4 : start + 8] not in _PNG_METADATA:
            kept.append(png[start:place])
    return BytesIO(b"".join(kept))


def _check_size(name: str, size: tuple[int, int], side: int, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadSampleError(
            f"{name} has {width} x {height} pixels; expected at most max_pixels={max_pixels}"
        )
    if side * side * max(size) > max_pixels * min(size):
        raise BadSampleError(
            f"{name} has {width} x {height} pixels, which with {side} on the shorter side are "
            f"more than max_pixels={max_pixels}"
        )


def _bits_of_tiff(photo: Image.Image) -> int | None:
    """Bits of the first channel of a TIFF file; None of another."""
    tags = getattr(photo, "tag_v2", {})
    return next(iter(tags.get(ExifTags.Base.BitsPerSample, ())), None)


def _rgb(photo: Image.Image) -> Image.Image:
    if photo.mode.startswith("I"):  # Pillow would cut off what is brighter than 255
        values = np.asarray(photo)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise InputError("it has 32 bits a channel; expected 8 or 16")
        # 16 bits, but a file of 32 may hold numbers of 8; Pillow has scaled those of a PGM to 16
        of_8 = photo.mode == "I" and photo.format != "PPM" and values.max() <= 0xFF
        bits = 8 if of_8 else 12 if _bits_of_tiff(photo) == 12 else 16
        return Image.fromarray((values >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if photo.mode == "F":
        raise InputError("it has floating-point pixels; expected 8 or 16 bits a channel")
    if photo.has_transparency_data:
        rgba = photo.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return photo if photo.mode == "RGB" else photo.convert("RGB")
