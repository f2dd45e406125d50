from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from PIL import Image

from itmkit.data.images import BadSampleError
from itmkit.data.photo import read_photo, upright_rgb


def box(*brands: bytes) -> bytes:
    """The start of an AVIF or HEIC file."""
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (4 + len(content)).to_bytes(4, "big") + content + bytes(100)


@pytest.mark.parametrize(
    ("brands", "told"),
    [
        ((b"heic", b"mif1"), "p.jpg is a HEIC image: pip install 'itmkit[heif]' to read it"),
        ((b"mif1", b"heix"), "p.jpg is a HEIC image: pip install"),
        ((b"mif1", b"avif"), "p.jpg is an AVIF image: pip install 'itmkit[heif]' to read it"),
        ((b"isom", b"mp42"), "cannot identify its format; expected JPEG, PNG, WEBP"),
    ],
)
def test_error_of_a_photo_without_decoder_names_the_extra(
    brands: tuple[bytes, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    (tmp_path / "p.jpg").write_bytes(box(*brands))
    with pytest.raises(BadSampleError, match=re.escape(told)):
        read_photo(tmp_path / "p.jpg", side=8, max_pixels=100)


def test_a_photo_that_was_turned_is_not_turned_again(tmp_path: Path) -> None:
    """It may be given on as a picture: to a retriever, or as what is searched for."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "p.jpg", exif=exif)
    photo = read_photo(tmp_path / "p.jpg", side=20, max_pixels=1000)
    assert photo.size == upright_rgb(photo).size == (20, 30)
