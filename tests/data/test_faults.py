"""The fault matrix: what is wrong with the data, and what a user then gets."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from picture_files import jpegs, write_tar
from PIL import Image
from PIL import features as pillow
from torch import Tensor, nn

from itmkit.data.captioned_folder import CaptionedFolder
from itmkit.data.extract import extract_features
from itmkit.data.images import BadSampleError
from itmkit.data.karpathy import KarpathyDataset
from itmkit.data.precomp import PrecompDataset
from itmkit.data.table import read_table
from itmkit.data.tokenizer import TransformersTokenizer, WordTokenizer, pad_texts
from itmkit.data.vocabulary import Vocabulary
from itmkit.nn import BiGRU

Make = Callable[[Path], object]  # writes the fault, into a path that it is given
Tag = tuple[bytes, bytes]  # of EXIF, its head and its value
Check = Callable[[Any], bool]  # what is right about that which is read all the same


class Fault(NamedTuple):
    """A row: what is read, what is wrong with it, and the check or the ValueError's message."""

    read: Callable[[Path, Make], Any]
    name: str
    make: Make
    expected: Check | str


# --------------------------------------------------------------------------------- photos

RED, GREY, WHITE = (254, 0, 0), (128, 128, 128), (255, 255, 255)


def photo(folder: Path, make: Make, **options: Any) -> Tensor:
    """The pixels 0 … 255 of a photo ``p.jpg``, which extraction sees alike."""
    (folder / "images").mkdir()
    entry = {"filename": "p.jpg", "split": "val", "sentences": [{"raw": "A dog."}]}
    (folder / "dataset.json").write_text(json.dumps({"images": [entry]}))
    make(folder / "images" / "p.jpg")
    data = KarpathyDataset(
        "val",
        folder / "dataset.json",
        folder / "images",
        image_size=16,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        check_images=False,
        **options,
    )
    try:
        image = data.image(0)
    except BadSampleError as error:
        with pytest.raises(BadSampleError, match=re.escape(str(error))):
            extract_features(data, Colours(), folder / "features", progress=False)
        assert not (folder / "features").exists()
        raise
    assert isinstance(image, Tensor)
    assert image.shape == (3, 16, 16)
    return image * 255


def following_links(folder: Path, make: Make) -> Tensor:
    return photo(folder, make, follow_links=True)


class Colours(nn.Module):
    """A backbone: the mean colour of a photo as its one token."""

    def forward(self, pixels: Tensor) -> tuple[Tensor, None]:
        return pixels.mean((2, 3))[:, None], None


def saved(mode: str, colour: Any, *, form: str = "PNG", size: tuple[int, int] = (40, 32)) -> Make:
    return lambda path: Image.new(mode, size, colour).save(path, format=form)


def numbers(array: np.ndarray, form: str = "PNG") -> Make:
    return lambda path: Image.fromarray(array).save(path, format=form)


def tiff_of_12_bits(path: Path) -> None:
    """Grey pixels of 12 bits, which Pillow reads and does not write."""
    width, height = 40, 32
    pixels = bytes.fromhex("800800") * (width * height // 2)
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: height}
    entries = b"".join(
        struct.pack("<HHII", k, 4, 1, v) for k, v in [*tags.items(), (279, len(pixels))]
    )
    folder = struct.pack("<H", 9) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + folder + pixels)


def jpeg() -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, format="JPEG")
    return file.getvalue()


def damaged(change: Callable[[bytes], bytes]) -> Make:
    return lambda path: path.write_bytes(change(jpeg()))


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG file."""
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)


def png_of(width: int, height: int, *chunks: bytes) -> Make:
    """A PNG of a few bytes that says it is of some size."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + body)


def png_with(kind: bytes, content: bytes, *, last: bool = False) -> Make:
    """A red PNG with one more chunk, before or behind its pixels."""

    def make(path: Path) -> None:
        saved("RGB", (255, 0, 0))(path)
        png = path.read_bytes()
        place = png.index(b"IEND") - 4 if last else png.index(b"IDAT") - 4
        path.write_bytes(png[:place] + chunk(kind, content) + png[place:])

    return make


LONG_TEXT = zlib.compress(b"a" * 2_000_000)

UPRIGHT = np.zeros((64, 64), dtype=np.uint8)  # dark above and bright below
UPRIGHT[32:] = 255
STORED = {3: np.rot90(UPRIGHT, 2), 6: np.rot90(UPRIGHT), 8: np.rot90(UPRIGHT, 3)}


def turned(orientation: int, *tags: Tag, form: str = "JPEG") -> Make:
    """A photo, dark above and bright below, stored as EXIF says, with some more tags."""
    stored = Image.fromarray(STORED[orientation].copy())
    exif = exif_of(tag(0x0112, 3, struct.pack(">HH", orientation, 0)), *tags)
    return lambda path: stored.save(path, format=form, exif=exif)


def tag(number: int, kind: int, value: bytes, count: int = 1) -> Tag:
    """A tag of EXIF; 2 is text, 3 and 4 are SHORT and LONG, 5 and 10 fractions, 7 is bytes."""
    return struct.pack(">HHI", number, kind, count), value


def exif_of(*tags: Tag) -> bytes:
    """EXIF in which values of more than four bytes follow the tags."""
    table, values = struct.pack(">H", len(tags)), b""
    for head, value in sorted(tags):
        if len(value) > 4:
            place = 8 + 2 + 12 * len(tags) + 4 + len(values)
            values, value = values + value, struct.pack(">I", place)
        table += head + value.ljust(4, b"\0")
    return b"Exif\0\0MM\0*\0\0\0\x08" + table + bytes(4) + values


ODD_TAGS = {
    "resolution over 0": tag(0x011A, 5, struct.pack(">II", 72, 0)),
    "resolution over -1": tag(0x011A, 10, struct.pack(">ii", 72, -1)),
    "resolution of text": tag(0x011A, 2, b"72 dpi\0\0", 7),
    "unit of text": tag(0x0128, 2, b"inch\0", 5),
    "unit of bytes": tag(0x0128, 7, b"\xff\xfe\xfd\xfc", 4),
    "width above 65,535": tag(0x0100, 4, struct.pack(">I", 70_000)),
    "unit above 65,535": tag(0x0128, 4, struct.pack(">I", 70_000)),
    "width below 0": tag(0x0100, 9, struct.pack(">i", -5)),
    "unit below 0": tag(0x0128, 8, struct.pack(">hh", -2, 0)),
    "text of numbers": tag(0x010F, 3, struct.pack(">HH", 7, 8), 2),
    "folder of tags that is nowhere": tag(0x8769, 4, struct.pack(">I", 2**32 - 1)),
    "folder of tags of text": tag(0x8769, 2, b"abcdef\0", 7),
    "unknown type": tag(0x0131, 77, bytes(4)),
}


def moving(form: str) -> Make:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return lambda path: frames[0].save(
        path, format=form, save_all=True, append_images=frames[1:], lossless=True
    )


def see_through(path: Path) -> None:
    """A palette image all of whose pixels are transparent."""
    Image.new("P", (40, 32), 0).save(path, format="PNG", transparency=0)


def avif_cut(path: Path) -> None:
    avif(6)(path)
    path.write_bytes(path.read_bytes()[:-100])


def heic(path: Path) -> None:
    """A HEIC file turned by EXIF, where there is an encoder."""
    plugin = pytest.importorskip("pillow_heif")
    exif = exif_of(tag(0x0112, 3, struct.pack(">HH", 6, 0)))
    image = plugin.from_pillow(Image.fromarray(STORED[6].copy()).convert("RGB"))
    image.info["exif"] = exif
    image.save(path, quality=-1)


def avif(orientation: int) -> Make:
    if not pillow.check("avif"):
        return lambda path: pytest.skip("this Pillow has no AVIF")
    return turned(orientation, form="AVIF")


def named(form: str) -> Make:
    """The photo under a name with an accent that the annotations write in the other form."""

    def make(path: Path) -> None:
        annotations = path.parents[1] / "dataset.json"
        other = {"NFC": "NFD", "NFD": "NFC"}[form]
        name = unicodedata.normalize(other, "caf\u00e9.jpg")
        annotations.write_text(annotations.read_text().replace("p.jpg", name), encoding="utf-8")
        path = path.with_name(unicodedata.normalize(form, "caf\u00e9.jpg"))
        saved("RGB", (255, 0, 0))(path)

    return make


def with_exif(exif: bytes) -> Make:
    return lambda path: Image.new("RGB", (40, 32), (255, 0, 0)).save(
        path, format="JPEG", exif=exif, quality=100
    )


def link_out(path: Path) -> None:
    outside = path.parents[1] / "secret.jpg"
    saved("RGB", (255, 0, 0))(outside)
    path.symlink_to(outside)


def link_inside(path: Path) -> None:
    saved("RGB", (255, 0, 0))(path.with_name("other.png"))
    path.symlink_to("other.png")


def folder_is_a_link(path: Path) -> None:
    path.parent.rename(path.parents[1] / "elsewhere")
    path.parent.symlink_to(path.parents[1] / "elsewhere")
    saved("RGB", (255, 0, 0))(path)


def is_colour(*colour: int) -> Check:
    return lambda image: bool((image.mean((1, 2)) - torch.tensor(colour)).abs().max() < 3)


def is_upright(image: Tensor) -> bool:
    return bool(image[:, :6].max() < 20 and image[:, -6:].min() > 235)


def is_finite(image: Tensor) -> bool:
    return bool(image.isfinite().all())


def ramp(top: int, dtype: str) -> np.ndarray:
    return np.linspace(0, top, 32 * 32).reshape(32, 32).astype(dtype)


UNREADABLE = "p.jpg is not a readable image"

PHOTOS = [
    Fault(photo, "jpeg cut short", damaged(lambda jpeg: jpeg[: len(jpeg) // 2]), UNREADABLE),
    Fault(photo, "jpeg of a header alone", damaged(lambda jpeg: jpeg[:300]), UNREADABLE),
    Fault(photo, "jpeg without its start", damaged(lambda jpeg: b"\0" * 9 + jpeg[9:]), UNREADABLE),
    # a JPEG whose middle is overwritten is still a JPEG: no decoder tells
    Fault(photo, "jpeg overwritten", damaged(lambda j: j[:2000] + bytes(50) + j[2050:]), is_finite),
    Fault(photo, "empty file", lambda p: p.write_bytes(b""), f"{UNREADABLE}: the file is empty"),
    Fault(photo, "text", lambda path: path.write_text("not a photo"), UNREADABLE),
    Fault(photo, "web page", lambda path: path.write_text("<html>404</html>"), UNREADABLE),
    Fault(
        photo, "eps, a program", saved("RGB", "red", form="EPS"), f"{UNREADABLE}: cannot identify"
    ),
    Fault(photo, "pcx, of which few know", saved("RGB", "red", form="PCX"), UNREADABLE),
    Fault(photo, "missing", lambda path: None, "p.jpg is missing, or not a file"),
    Fault(photo, "folder", lambda path: path.mkdir(), "p.jpg is missing, or not a file"),
    Fault(photo, "pipe", lambda path: os.mkfifo(path), "p.jpg is missing, or not a file"),
    Fault(photo, "link to nowhere", lambda p: p.symlink_to("no.jpg"), "p.jpg is missing, or not"),
    Fault(photo, "link out", link_out, "p.jpg is a link to "),
    Fault(photo, "link to the root", lambda path: path.symlink_to("/"), "p.jpg is a link to /;"),
    Fault(following_links, "link out, as wanted", link_out, is_colour(255, 0, 0)),
    Fault(photo, "link inside", link_inside, is_colour(255, 0, 0)),
    Fault(photo, "folder that is a link", folder_is_a_link, is_colour(255, 0, 0)),
    Fault(photo, "png named jpg", saved("RGB", (10, 20, 30)), is_colour(10, 20, 30)),
    Fault(photo, "cmyk jpeg", saved("CMYK", (0, 255, 255, 0), form="JPEG"), is_colour(*RED)),
    Fault(photo, "grey jpeg", saved("L", 128, form="JPEG"), is_colour(*GREY)),
    Fault(photo, "black and white", saved("1", 1), is_colour(*WHITE)),
    Fault(photo, "palette", saved("P", 0, form="GIF"), is_colour(0, 0, 0)),
    Fault(photo, "animated", moving("GIF"), is_colour(*RED)),
    Fault(photo, "transparent", saved("RGBA", (255, 0, 0, 0)), is_colour(*WHITE)),
    Fault(photo, "half transparent", saved("RGBA", (0, 0, 0, 127)), is_colour(*GREY)),
    Fault(photo, "grey with alpha", saved("LA", (0, 0)), is_colour(*WHITE)),
    Fault(photo, "16 bits", numbers(np.full((32, 40), 0x8000, "uint16")), is_colour(*GREY)),
    Fault(photo, "16 bits, a ramp", numbers(ramp(65535, "uint16")), lambda p: 120 < p.mean() < 135),
    Fault(photo, "16 bits tiff", saved("I;16B", 0x8000, form="TIFF"), is_colour(*GREY)),
    Fault(photo, "12 bits tiff", tiff_of_12_bits, is_colour(*GREY)),
    Fault(photo, "16 bits, dark", numbers(np.full((32, 40), 128, "uint16")), is_colour(0, 0, 0)),
    Fault(
        photo,
        "16 bits pgm, dark",
        numbers(np.full((32, 40), 128, "int32"), "PPM"),
        is_colour(0, 0, 0),
    ),
    Fault(
        photo, "8 in 32 bits", numbers(np.full((32, 40), 128, "int32"), "TIFF"), is_colour(*GREY)
    ),
    Fault(
        photo,
        "16 in 32 bits",
        numbers(np.full((32, 40), 0x8000, "int32"), "TIFF"),
        is_colour(*GREY),
    ),
    Fault(
        photo, "32 bits", numbers(ramp(2**30, "int32"), "TIFF"), "p.jpg is not a readable image: it"
    ),
    Fault(photo, "floats", numbers(ramp(1, "float32"), "TIFF"), "it has floating-point pixels"),
    Fault(photo, "1 x 1", saved("RGB", (9, 99, 199), size=(1, 1)), is_colour(9, 99, 199)),
    Fault(
        photo, "20 megapixels", saved("L", 128, form="JPEG", size=(5000, 4000)), is_colour(*GREY)
    ),
    Fault(
        photo,
        "101 megapixels",
        png_of(10_100, 10_000),
        "p.jpg has 10100 x 10000 pixels; expected at most max_pixels=100000000",
    ),
    Fault(photo, "a gigapixel", png_of(32_000, 32_000), "p.jpg has more than max_pixels=100000000"),
    Fault(
        photo,
        "a line, huge once scaled",
        png_of(500_000, 1),
        "p.jpg has 500000 x 1 pixels, which with 16 on the shorter side are more than max_pixels",
    ),
    *(Fault(photo, f"exif {number}", turned(number), is_upright) for number in (3, 6, 8)),
    *(
        Fault(photo, f"exif {form} {name}", turned(6, odd, form=form), is_upright)
        for name, odd in ODD_TAGS.items()
        for form in ("JPEG", "PNG", "WEBP")
    ),
    Fault(photo, "tiff turned", turned(6, form="TIFF"), is_upright),
    Fault(photo, "avif turned", avif(6), is_upright),
    Fault(photo, "avif cut short", avif_cut, UNREADABLE),
    Fault(photo, "heic turned", heic, is_upright),
    *(
        Fault(photo, f"png with a long text, {kind!r}", png_with(kind, content), is_colour(*RED))
        for kind, content in (
            (b"zTXt", b"comment\0\0" + LONG_TEXT),
            (b"iTXt", b"comment\0\1\0\0\0" + LONG_TEXT),
            (b"iCCP", b"profile\0\0" + LONG_TEXT),
        )
    ),
    Fault(
        photo,
        "png with a long text behind its pixels",
        png_with(b"zTXt", b"comment\0\0" + LONG_TEXT, last=True),
        is_colour(*RED),
    ),
    Fault(
        photo,
        "a gigapixel with a long text",
        png_of(32_000, 32_000, chunk(b"zTXt", b"comment\0\0" + LONG_TEXT)),
        "p.jpg has more than max_pixels=100000000",
    ),
    *(Fault(photo, f"name in {form}", named(form), is_colour(*RED)) for form in ("NFC", "NFD")),
    *(Fault(photo, f"moving {form}", moving(form), is_colour(*RED)) for form in ("WEBP", "PNG")),
    Fault(photo, "several pictures of a phone", moving("MPO"), is_colour(*RED)),
    Fault(photo, "bmp", saved("RGB", (10, 20, 30), form="BMP"), is_colour(10, 20, 30)),
    Fault(photo, "tiff", saved("RGB", (10, 20, 30), form="TIFF"), is_colour(10, 20, 30)),
    Fault(photo, "cmyk tiff", saved("CMYK", (0, 255, 255, 0), form="TIFF"), is_colour(*RED)),
    Fault(photo, "palette with transparency", see_through, is_colour(*WHITE)),
    Fault(photo, "exif of zeros", with_exif(b"Exif\0\0" + bytes(60)), is_colour(255, 0, 0)),
    Fault(photo, "exif cut", with_exif(b"Exif\0\0MM\0*\0\0\0\x08\0\x09"), is_colour(255, 0, 0)),
    Fault(
        photo,
        "exif orientation 99",
        with_exif(b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0"),
        is_colour(255, 0, 0),
    ),
]

# --------------------------------------------------------------------------------- annotations


def annotations(folder: Path, make: Make) -> KarpathyDataset:
    make(folder / "dataset.json")
    return KarpathyDataset("val", folder / "dataset.json", folder, check_images=False)


def written(text: str) -> Make:
    return lambda path: path.write_text(text, encoding="utf-8")


def entries(*changes: dict[str, Any], **change: Any) -> Make:
    """Annotations of one image for every change of its fields; None leaves a field out."""
    images = []
    for number, one in enumerate(changes or (change,)):
        sentences = [{"raw": "A.", "tokens": ["a"]}]
        entry = {"filename": f"{number}.jpg", "split": "val", "sentences": sentences, **one}
        images.append({key: value for key, value in entry.items() if value is not None})
    return written(json.dumps({"images": images}))


def marked(make: Make) -> Make:
    """The file with a byte order mark before its start, as some editors write it."""

    def change(path: Path) -> None:
        make(path)
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())

    return change


NO_JSON = "dataset.json is not JSON: "
FORM = "dataset.json is not in Karpathy's form"
OUTSIDE = "; expected a file inside the image folder"

ANNOTATIONS = [
    Fault(annotations, "no json", written("{"), NO_JSON),
    Fault(annotations, "json cut short", written('{"images": [{"split": "val", "filen'), NO_JSON),
    Fault(
        annotations,
        "not utf-8",
        lambda path: path.write_bytes(b'{"images": "\xe9"}'),
        "dataset.json is not UTF-8: invalid continuation byte in line 1",
    ),
    Fault(annotations, "nested without end", written("[" * 100_000), NO_JSON),
    Fault(annotations, "a number of 5000 digits", written(f'{{"images": {"9" * 5000}}}'), NO_JSON),
    Fault(
        annotations,
        "utf-16",
        lambda path: path.write_text('{"images": []}', encoding="utf-16"),
        "dataset.json is UTF-16; expected UTF-8",
    ),
    Fault(
        annotations,
        "byte order mark",
        marked(entries(filename="é.jpg")),
        lambda data: data.names == ["é.jpg"],
    ),
    Fault(annotations, "a list", written("[]"), FORM),
    Fault(annotations, "images is a mapping", written('{"images": {"a": 1}}'), FORM),
    Fault(annotations, "an image is a string", written('{"images": ["a.jpg"]}'), FORM),
    Fault(annotations, "no filename", entries(filename=None), "KeyError('filename') in {'split'"),
    Fault(
        annotations, "no split", entries(split=None), "KeyError('split') in {'filename': '0.jpg'"
    ),
    Fault(annotations, "no sentences", entries(sentences=None), "KeyError('sentences') in {"),
    Fault(annotations, "no words", entries(sentences=[{"sentid": 1}]), "KeyError('tokens') in {"),
    Fault(annotations, "filename is a number", entries(filename=7), FORM),
    Fault(annotations, "split is a list", entries(split=["val"]), FORM),
    Fault(annotations, "raw is a number", entries(sentences=[{"raw": 7}]), FORM),
    Fault(annotations, "a word is a number", entries(sentences=[{"tokens": [7]}]), FORM),
    Fault(
        annotations, "no image", written('{"images": []}'), "no image of the split 'val'; it has []"
    ),
    Fault(
        annotations,
        "other splits",
        entries({"split": "train"}, {"split": 1}),
        "no image of the split 'val'; it has [1, 'train']",
    ),
    Fault(
        annotations,
        "a fault in the third image",
        entries({}, {}, {"sentences": 7}),
        "'sentences': 7}, images[2]); expected images[] with filename, split and sentences[]",
    ),
    Fault(annotations, "no caption", entries(sentences=[]), "has no caption in the split 'val'"),
    Fault(
        annotations,
        "an image twice",
        entries({"filename": "a.jpg"}, {}, {"filename": "a.jpg"}),
        "dataset.json names 'a.jpg' 2 times; expected each image once a split",
    ),
    *(
        Fault(annotations, f"filename {name!r}", entries(filename=name), f"names {name!r}{OUTSIDE}")
        for name in r"../a.jpg /etc/passwd a/../../b.jpg ..\a.jpg C:\a.jpg .".split()
    ),
    *(
        Fault(annotations, f"filename {name!r}", entries(filename=name), f"names {name!r}{OUTSIDE}")
        for name in ("a\nb.jpg", "a\0.jpg", "\udcff.jpg")
    ),
    Fault(annotations, "filepath ..", entries(filepath=".."), f"names '../0.jpg'{OUTSIDE}"),
    Fault(annotations, "filepath /", entries(filepath="/etc"), f"names '/etc/0.jpg'{OUTSIDE}"),
    Fault(
        annotations,
        "words without raw",
        entries(sentences=[{"tokens": ["a", "dog"]}]),
        lambda data: data.captions == ["a dog"],
    ),
]

# --------------------------------------------------------------------------------- tables


def table(folder: Path, make: Make, name: str = "t.csv", **options: Any) -> CaptionedFolder:
    """All of a table; its photos are p.jpg, q.JPG and a/p.jpg."""
    (folder / "images" / "a").mkdir(parents=True)
    for photo in ("p.jpg", "q.JPG", "a/p.jpg"):
        saved("RGB", (255, 0, 0), form="JPEG")(folder / "images" / photo)
    make(folder / name)
    options = {"shares": {"val": 1.0}, **options}
    data = CaptionedFolder("val", folder / "images", folder / name, image_size=16, **options)
    assert isinstance(data.image(0), Tensor)
    return data


def json_lines(folder: Path, make: Make) -> CaptionedFolder:
    return table(folder, make, "t.jsonl")


def parquet(folder: Path, make: Make) -> CaptionedFolder:
    return table(folder, make, "t.parquet")


def tabs(folder: Path, make: Make) -> CaptionedFolder:
    return table(folder, make, "t.tsv")


def by_column(folder: Path, make: Make) -> CaptionedFolder:
    return table(folder, make, shares=None)


def by_option(folder: Path, make: Make) -> CaptionedFolder:
    return table(folder, make, caption_column="captoin")


def stored(columns: dict[str, Any]) -> Make:
    """A Parquet file, where there is pyarrow."""

    def make(path: Path) -> None:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.table(columns), path)

    return make


def rows(*lines: str, header: str = "image,caption") -> Make:
    return written("\n".join([header, *lines]) + "\n")


def is_read(data: CaptionedFolder) -> bool:
    return dict(zip(data.names, data.captions, strict=True)) == {"p.jpg": "a dog"}


ONE = "p.jpg,a dog"
TABLES = [
    Fault(table, "as expected", rows(ONE), is_read),
    Fault(table, "empty file", written(""), "t.csv has no rows"),
    Fault(table, "names of columns alone", rows(), "t.csv has no rows"),
    Fault(
        table,
        "no column of files",
        rows(ONE, header="photo_file,caption"),
        "t.csv has the columns 'photo_file', 'caption'; expected one of 'file_name', 'filename', "
        "'image', 'path', or the option file_column",
    ),
    Fault(
        table,
        "a column with a slip",
        rows(ONE, header="image,captoin"),
        "'text', 'captions', or the option caption_column. Did you mean 'caption'?",
    ),
    Fault(
        by_option,
        "an option with a slip",
        rows(ONE),
        "caption_column is 'captoin', but ",
    ),
    Fault(table, "no names of columns", written(f"{ONE}\n{ONE}\n"), "has the columns 'p.jpg', 'a"),
    Fault(table, "a column twice", rows("p.jpg,a,b", header="image,text,text"), "each name once"),
    Fault(
        table,
        "semicolons",
        rows("p.jpg;a dog", header="image;caption"),
        "or the option file_column. Is the delimiter ';'?",
    ),
    Fault(table, "tabs", rows("p.jpg\ta", header="image\tcaption"), "Is the delimiter '\\t'?"),
    Fault(tabs, "commas", rows(ONE), "Is the delimiter ','?"),
    Fault(
        table,
        "a comma without quotes",
        rows(ONE, "q.JPG,a dog, running"),
        "t.csv, line 3 has 3 cells; expected 2, for the columns 'image', 'caption': a cell that "
        "holds ',' needs quotes",
    ),
    Fault(table, "a cell is missing", rows(ONE, "", "q.JPG"), "t.csv, line 4 has 1 cells"),
    Fault(table, "quotes without end", rows('p.jpg,"a dog', ONE), "t.csv, line 3 is not CSV: unex"),
    Fault(table, "text behind quotes", rows('p.jpg,"a" dog'), "t.csv, line 2 is not CSV: ',' exp"),
    Fault(
        table,
        "not utf-8",
        lambda path: path.write_bytes(b"image,caption\np.jpg,caf\xe9\n"),
        "t.csv is not UTF-8: invalid continuation byte in line 2",
    ),
    Fault(
        table,
        "utf-16",
        lambda path: path.write_text("image,caption\n", encoding="utf-16"),
        "t.csv is UTF-16; expected UTF-8",
    ),
    Fault(table, "byte order mark", marked(rows(ONE)), is_read),
    Fault(
        table,
        "line ends of Windows",
        lambda path: path.write_bytes(b"image,caption\r\np.jpg,a dog\r\n"),
        is_read,
    ),
    Fault(table, "a line end in quotes", rows('p.jpg,"a\ndog"'), is_read),
    Fault(table, "an empty line", rows("", ONE, ""), is_read),
    Fault(table, "white space", rows(" p.jpg , a  dog "), is_read),
    Fault(table, "./ before a path", rows("./p.jpg,a dog"), is_read),
    *(
        Fault(table, f"{name!r} as a file", rows(ONE, f"{name},a"), f"names {name!r}{OUTSIDE}")
        for name in r"../p.jpg /etc/passwd a/../../p.jpg ..\p.jpg C:\p.jpg .".split()
    ),
    Fault(table, "no name", rows(ONE, " ,a dog"), "t.csv, line 3 has ' ' in the column 'image'"),
    Fault(table, "an empty caption", rows(ONE, "q.JPG,"), "line 3 has an empty caption in the col"),
    Fault(table, "a blank caption", rows(ONE, 'q.JPG,"  "'), "line 3 has the caption '  '"),
    Fault(table, "an empty list", rows(ONE, "q.JPG,[]"), "t.csv, line 3 has an empty caption in"),
    Fault(
        table,
        "brackets that are no list",
        rows("p.jpg,[a dog]"),
        lambda data: data.captions == ["[a dog]"],
    ),
    Fault(
        by_column,
        "an image in two splits",
        rows(f"{ONE},val", "p.jpg,b,train", header="image,caption,split"),
        "line 3 has 'p.jpg' in the split 'train', a line before has it in 'val'",
    ),
    Fault(
        by_column,
        "a split without images",
        rows(f"{ONE},train", "q.JPG,a,test", header="image,caption,split"),
        "t.csv has no image of the split 'val'; it has 'test', 'train'",
    ),
    Fault(
        by_column,
        "no split in a row",
        rows(f"{ONE},val", "q.JPG,a,", header="image,caption,split"),
        "t.csv, line 3 has '' in the column 'split'; expected the name of a split",
    ),
    Fault(by_column, "too few to draw from", rows(ONE), "no image of the split 'val'; it has 'tr"),
    Fault(json_lines, "no json", written('{"image": "p.jpg"'), "t.jsonl, line 1 is not JSON"),
    Fault(json_lines, "nested", written("[" * 100_000), "t.jsonl, line 1 is not JSON"),
    Fault(json_lines, "a list", written('["p.jpg", "a"]'), 'line 1 is \'["p.jpg", "a"]\'; expect'),
    Fault(
        json_lines,
        "a row without a caption",
        written('{"image": "p.jpg", "text": "a"}\n{"image": "q.JPG"}\n'),
        "t.jsonl, line 2 has an empty caption in the column 'text'",
    ),
    Fault(
        json_lines,
        "a number as a file",
        written('{"image": 7, "text": "a"}'),
        "t.jsonl, line 1 has 7 in the column 'image'; expected the path of a photo",
    ),
    Fault(
        json_lines,
        "a number as a caption",
        written('{"image": "p.jpg", "text": ["a", 7]}'),
        "t.jsonl, line 1 has the caption 7 in the column 'text'; expected a text",
    ),
    Fault(parquet, "not parquet", written("PAR1"), "t.parquet is not Parquet: "),
    Fault(
        parquet,
        "pictures in the table",
        stored({"image": [{"bytes": b"1"}], "text": ["a"]}),
        "t.parquet has the columns 'text'; expected one of 'file_name', ",
    ),
    Fault(parquet, "a null", stored({"image": ["p.jpg"], "text": [None]}), "row 1 has an empty"),
    Fault(parquet, "no rows", stored({"image": [], "text": []}), "t.parquet has no rows"),
]

#: what is an error of another type, and so not of the table above: it names a file
MISSING = {
    "a photo": (rows(ONE, "r.jpg,a"), "r.jpg is missing, one of 1 missing images of the split"),
    "a photo of another case": (rows("q.jpg,a"), "split 'val'. Did you mean 'q.JPG'?"),
    "a photo without its ending": (rows("a/p,a"), "split 'val'. Did you mean 'p.jpg'?"),
    "the table": (lambda path: None, "t.csv' is not a file"),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing_file_of_a_table(name: str, tmp_path: Path) -> None:
    make, message = MISSING[name]
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        table(tmp_path, make)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": {"val": 0.5}}, "shares is {'val': 0.5}; expected numbers above 0 that sum"),
        ({"shares": {"val": 0, "train": 1.0}}, "shares is {'val': 0, 'train': 1.0}; expected"),
        ({"shares": {"train": 1.0}}, "no image of the split 'val'; it has 'train'"),
        ({"split_seed": -1}, "split_seed is -1; expected 0 or more"),
        ({"max_captions": 0}, "max_captions is 0; expected 1 or more"),
        ({"delimiter": ";;"}, "delimiter is ';;'; expected one character"),
        ({"delimiter": ";", "name": "t.jsonl"}, "delimiter is ';', and "),
        (
            {"shares": {"val": 1.0}, "split_column": "split"},
            "split_column is 'split', and shares are given; expected one of them",
        ),
        ({"name": "t.xlsx"}, "t.xlsx ends in '.xlsx'; expected one of .csv, .tsv"),
        (
            {"name": "t.json"},
            ".jsonl, .parquet, a table, not captions in Karpathy's or COCO's form",
        ),
        ({"flip": 1.5}, "flip is 1.5; expected a number in [0, 1]"),
    ],
)
def test_wrong_option_of_a_table(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        table(tmp_path, rows(ONE), **options)


# --------------------------------------------------------------------------------- pictures inside

JPEG = next(iter(jpegs(1).values()))


def inside(folder: Path, make: Make, name: str = "p.tar", **options: Any) -> CaptionedFolder:
    """All of a file with pictures inside."""
    make(folder / name)
    data = CaptionedFolder("val", folder / name, shares={"val": 1.0}, image_size=16, **options)
    for row in range(len(data)):
        data.image(row)
    return data


def inside_parquet(folder: Path, make: Make) -> CaptionedFolder:
    return inside(folder, make, "p.parquet")


def inside_column(folder: Path, make: Make) -> CaptionedFolder:
    return inside(folder, make, "p.parquet", file_column="pciture")


def other_name(name: str) -> Callable[[Path, Make], CaptionedFolder]:
    return lambda folder, make: inside(folder, make, name)


def tar(*files: tuple[str, Any]) -> Make:
    return lambda path: write_tar(path, files)


def overwritten(make: Make, first: int, count: int) -> Make:
    """What ``make`` writes, some bytes of it zero."""

    def change(path: Path) -> None:
        make(path)
        with path.open("r+b") as content:
            content.seek(first)
            content.write(bytes(count))

    return change


def bad_offsets(path: Path) -> None:
    """A caption of a saved dataset that would end before it begins."""
    import pyarrow as pa

    file = next(path.glob("*.arrow"))
    table = pa.table({"image": [JPEG], "text": ["a caption"]})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = file.read_bytes()
    place = content.rindex(np.array([0, 9], "<i4").tobytes(), 0, content.index(b"a caption"))
    ends = np.array([9, 0], "<i4").tobytes()
    file.write_bytes(content[:place] + ends + content[place + len(ends) :])


def cut_to(make: Make, size: int) -> Make:
    """A file without its end: so many bytes of it, or without as many where less than 0."""

    def change(path: Path) -> None:
        make(path)
        os.truncate(path, size if size > 0 else path.stat().st_size + size)

    return change


def changed_inside(folder: Path, make: Make) -> None:
    tar(("a.jpg", JPEG), ("a.txt", "a"))(folder / "p.tar")
    data = CaptionedFolder("val", folder / "p.tar", shares={"val": 1.0})
    make(folder / "p.tar")
    data.image(0)


def saved_dataset(folder: Path, make: Make) -> CaptionedFolder:
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict({"image": [JPEG], "text": ["a"]})
    whole.save_to_disk(folder / "saved")
    make(folder / "saved")
    return inside(folder, lambda path: None, "saved")


def structs(*pictures: tuple[str | None, bytes | None], **columns: Any) -> Make:
    texts = {"text": ["a"] * len(pictures)}
    image = [{"bytes": content, "path": name} for name, content in pictures]
    return stored({"image": image, **texts, **columns})


TWO = (("a.jpg", JPEG), ("a.txt", "a dog"))
NOT_WHOLE = "p.tar is not a whole tar file: "
INSIDE = [
    Fault(inside, "as expected", tar(*TWO), lambda data: data.captions == ["a dog"]),
    Fault(inside, "no tar", written("a dog" * 1000), NOT_WHOLE),
    Fault(inside, "nothing", written(""), NOT_WHOLE),
    Fault(inside, "cut in a picture", cut_to(tar(*TWO), 700), f"{NOT_WHOLE}a.jpg is cut short"),
    Fault(inside, "cut in a header", cut_to(tar(*TWO[:1]), 100), NOT_WHOLE),
    Fault(inside, "no picture", tar(("a.txt", "a")), "p.tar has no picture; expected files that"),
    Fault(inside, "a name twice", tar(*TWO, *TWO), "p.tar has the file 'a.jpg' twice"),
    *(
        Fault(inside, f"the name {name}", tar((name, JPEG)), f"p.tar names '{name}'{OUTSIDE}")
        for name in ("../a.jpg", "/a.jpg", "a/../../b.jpg")
    ),
    Fault(inside, "no captions", tar(TWO[0]), "p.tar has the columns 'file_name'; expected one of"),
    Fault(inside, "one without", tar(*TWO, ("b.jpg", JPEG)), "p.tar, file b.jpg has an empty capt"),
    Fault(inside, "an empty text", tar(TWO[0], ("a.txt", "\n")), "p.tar, file a.jpg has an empty"),
    Fault(inside, "no JSON", tar(TWO[0], ("a.json", "{")), "p.tar, file a.json is not JSON: "),
    Fault(inside, "a list", tar(TWO[0], ("a.json", "[]")), "p.tar, file a.json is '[]'; expected"),
    Fault(inside, "no UTF-8", tar(TWO[0], ("a.txt", b"\xe9")), "p.tar, file a.txt is not text in"),
    Fault(
        inside, "two of a key", tar(*TWO, ("a.png", JPEG)), "p.tar has 2 pictures of the key 'a'"
    ),
    Fault(
        inside, "not a picture", tar(("a.jpg", "no"), TWO[1]), "p.tar/a.jpg is not a readable im"
    ),
    Fault(changed_inside, "changed", tar(("b.jpg", JPEG)), "p.tar was changed while it was in use"),
    Fault(changed_inside, "cut in use", lambda path: os.truncate(path, 600), "p.tar was changed"),
    Fault(
        other_name("p.tar.gz"), "compressed", written("a"), "cannot be read in any order, unpack"
    ),
    Fault(other_name("p.zip"), "zip", written("a"), "p.zip is neither a folder nor one of .tar, "),
    Fault(inside_parquet, "no parquet", written("PAR1"), "p.parquet is not Parquet: "),
    Fault(inside_parquet, "cut short", cut_to(structs(("a", JPEG)), -20), "p.parquet is not Parqu"),
    Fault(
        inside_parquet,
        "no pages",
        overwritten(structs(("a", JPEG)), 4, 30),
        "p.parquet is not Parquet: ",
    ),
    Fault(
        inside_parquet,
        "no pictures",
        stored({"image": ["a.jpg"], "text": ["a"]}),
        "p.parquet has the columns 'image', 'text'; expected one of pictures, {bytes, path} or by",
    ),
    Fault(
        inside_parquet,
        "two columns of pictures",
        stored({"left": [JPEG], "right": [JPEG], "text": ["a"]}),
        "p.parquet has the columns of pictures 'left', 'right'; expected one, or the option file_",
    ),
    Fault(
        inside_column,
        "an option with a slip",
        stored({"picture": [JPEG], "text": ["a"]}),
        "p.parquet has pictures in 'picture'. Did you mean 'picture'?",
    ),
    Fault(inside_parquet, "no rows", structs(), "p.parquet has "),
    Fault(
        inside_parquet,
        "a path alone",
        structs(("a.jpg", JPEG), ("b.jpg", None)),
        "p.parquet, row 2 has no picture but the path 'b.jpg'; expected its bytes inside the file",
    ),
    Fault(
        inside_parquet, "null", stored({"image": [JPEG, None], "text": ["a"] * 2}), "row 2 has no"
    ),
    Fault(
        inside_parquet,
        "a name of two pictures",
        structs(("a.jpg", JPEG), ("a.jpg", b"other")),
        "p.parquet, row 2 has another picture 'a.jpg' than row 1; expected each name once",
    ),
    Fault(
        inside_parquet, "outside", structs(("../a.jpg", JPEG)), f"row 1 names '../a.jpg'{OUTSIDE}"
    ),
    Fault(
        inside_parquet,
        "a path of another machine",
        structs(("/home/me/a.jpg", JPEG)),
        lambda data: data.names == ["a.jpg"],
    ),
    Fault(
        inside_parquet, "an empty caption", structs(("a", JPEG), text=[""]), "row 1 has an empty"
    ),
    Fault(inside_parquet, "no picture", structs(("a.jpg", b"no")), "p.parquet/a.jpg is not a read"),
]
INSIDE_A_DATASET = [
    Fault(saved_dataset, "as expected", lambda path: None, lambda data: data.captions == ["a"]),
    Fault(
        saved_dataset,
        "cut short",
        lambda path: os.truncate(next(path.glob("*.arrow")), 300),
        "saved is not a whole dataset: ",
    ),
    Fault(saved_dataset, "bad offsets", bad_offsets, "saved is not a whole dataset: "),
    Fault(
        saved_dataset, "no JSON", lambda path: (path / "state.json").write_text("{"), "saved is not"
    ),
]

# --------------------------------------------------------------------------------- features


def features(folder: Path, make: Make) -> PrecompDataset:
    """Open and read a split of three images, one file of which ``make`` has changed."""
    np.save(folder / "dev_ims.npy", np.ones((3, 4, 6), "float32"))
    (folder / "dev_caps.txt").write_text("a dog\n" * 15)
    make(folder)
    data = PrecompDataset("dev", folder)
    for row in range(3):
        data.image(row)
    return data


def changed_under_way(folder: Path, make: Make) -> None:
    np.save(folder / "dev_ims.npy", np.ones((3, 400, 6), "float32"))
    (folder / "dev_caps.txt").write_text("a dog\n" * 15)
    data = PrecompDataset("dev", folder)
    data.image(0)
    make(folder / "dev_ims.npy")
    data.image(1)


def array(name: str, content: Any) -> Make:
    return lambda folder: np.save(folder / name, content, allow_pickle=True)


def content(name: str, content: bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(content)


def cut(share: float) -> Make:
    def make(path: Path) -> None:
        path = path / "dev_ims.npy" if path.is_dir() else path
        os.truncate(path, int(share * path.stat().st_size))

    return make


def not_finite(value: float, dtype: str = "float32") -> np.ndarray:
    broken = np.ones((3, 4, 6), dtype)
    broken[1, 2, 3] = value
    return broken


def archive(folder: Path) -> None:
    with open(folder / "dev_ims.npy", "wb") as file:
        np.savez(file, np.ones((3, 4, 6)))


class Program:
    """Would write a file if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("unpickled",)


NPY = "dev_ims.npy is not a whole .npy file"
ONES = np.ones((3, 4, 6))

FEATURES = [
    Fault(features, "cut short", cut(0.5), NPY),
    Fault(features, "cut in its header", cut(0.05), NPY),
    Fault(features, "empty", cut(0), NPY),
    Fault(features, "text", content("dev_ims.npy", b"no features"), NPY),
    Fault(features, "header", content("dev_ims.npy", b"\x93NUMPY\1\0\5\0(((((" + bytes(50)), NPY),
    Fault(features, "archive", archive, NPY),
    Fault(features, "objects", array("dev_ims.npy", np.array([{}] * 3, dtype=object)), NPY),
    Fault(features, "pickle", array("dev_ims.npy", np.array([Program()])), NPY),
    Fault(
        features, "pickled boxes", array("dev_boxes.npy", np.array([Program()])), "dev_boxes.npy"
    ),
    Fault(features, "integers", array("dev_ims.npy", ONES.astype(int)), "dev_ims.npy holds int64"),
    Fault(features, "strings", array("dev_ims.npy", ONES.astype(str)), "dev_ims.npy holds <U"),
    Fault(features, "big-endian", array("dev_ims.npy", ONES.astype(">f4")), lambda data: True),
    Fault(features, "float64", array("dev_ims.npy", ONES), lambda data: True),
    Fault(
        features, "rank 2", array("dev_ims.npy", ONES[0]), "has the shape (4, 6); expected rank 3"
    ),
    Fault(
        features, "rank 4", array("dev_ims.npy", ONES[None]), "expected rank 3, (images, regions"
    ),
    Fault(features, "no regions", array("dev_ims.npy", ONES[:, :0]), "expected no empty rows"),
    *(
        Fault(
            features,
            f"{value} as {dtype}",
            array("dev_ims.npy", not_finite(value, dtype)),
            "dev_ims.npy has a value that is not finite in row 1: "
            f"{np.array(value, dtype):g} in its region 2",
        )
        for value, dtype in ((np.nan, "float32"), (np.inf, "float16"), (1e300, "float64"))
    ),
    Fault(features, "boxes of strings", array("dev_boxes.npy", ONES.astype(str)), "holds <U"),
    Fault(
        features,
        "boxes not finite",
        array("dev_boxes.npy", np.full((3, 4, 4), np.nan)),
        "dev_boxes.npy goes from nan to nan (as they are); expected [0, 1]",
    ),
    Fault(
        features, "captions not utf-8", content("dev_caps.txt", b"caf\xe9\n" * 15), "is not UTF-8"
    ),
    Fault(
        features,
        "captions cut short",
        content("dev_caps.txt", b"a dog\n" * 14 + b"a d\n" * 3),
        "dev_caps.txt has 17 lines; expected 15 (five for each of the 3 rows of dev_ims.npy)",
    ),
    Fault(
        features,
        "ids missing",
        content("dev_ids.txt", b"a\nb\n"),
        "dev_ids.txt has 2 lines; expected 3",
    ),
    Fault(
        features, "ids twice", content("dev_ids.txt", b"a\nb\na\n"), "dev_ids.txt names 'a' 2 times"
    ),
    Fault(
        features,
        "a row of 30 digits",
        content("dev_cap_images.txt", b"0\n" * 14 + b"9" * 30),
        "dev_cap_images.txt has a line that is no row number",
    ),
    Fault(
        features,
        "a row that is none",
        content("dev_cap_images.txt", b"0\n" * 8 + b"3\n" * 7),
        "line 9 is '3'; expected the row of an image, 0 … 2",
    ),
    Fault(
        features,
        "an id is empty",
        content("dev_ids.txt", b"a\n\nb\n"),
        "dev_ids.txt has an empty line 2; expected a name",
    ),
    Fault(
        features,
        "captions utf-16",
        content("dev_caps.txt", ("a dog\n" * 15).encode("utf-16")),
        "dev_caps.txt is UTF-16; expected UTF-8",
    ),
    *(
        Fault(
            features,
            name,
            content("dev_caps.txt", text),
            lambda data: data.captions == ["a dog"] * 15,
        )
        for name, text in {
            "byte order mark": b"\xef\xbb\xbf" + b"a dog\n" * 15,
            "line ends of Windows": b"a dog\r\n" * 15,
            "no line end at the end": b"a dog\n" * 14 + b"a dog",
            "carriage returns inside captions": b"a\rdog\n" * 15,
            "tabs and spaces": b"\ta \t dog \n" * 15,
            "empty lines at the end": b"a dog\n" * 15 + b"\n \n\n",
        }.items()
    ),
    Fault(
        features,
        "an empty caption at the end",
        content("dev_caps.txt", b"a dog\n" * 14 + b"\n"),
        lambda data: data.captions == ["a dog"] * 14 + [""],
    ),
    Fault(
        features,
        "ids of windows, empty lines at the end",
        content("dev_ids.txt", b"a b \r\nc\r\nd\r\n\r\n"),
        lambda data: data.names == ["a b", "c", "d"],
    ),
    Fault(
        features,
        "notes with a byte order mark",
        content("dev_features.json", b'\xef\xbb\xbf{"grid": [2, 2]}'),
        lambda data: data.image(0).boxes is not None,
    ),
    Fault(
        features,
        "grid of words",
        content("dev_features.json", b'{"grid": "ab"}'),
        "is not what itmkit",
    ),
    Fault(
        features, "grid nested", content("dev_features.json", b"[" * 100_000), "is not what itmkit"
    ),
    Fault(
        features,
        "grid below 1",
        content("dev_features.json", b'{"grid": [-2, -2]}'),
        "the grid [-2",
    ),
    Fault(changed_under_way, "cut short under way", cut(0.1), "dev_ims.npy was changed while it"),
    Fault(
        changed_under_way,
        "another shape under way",
        lambda path: np.save(path, np.ones((9, 2, 6), "float32")),
        "dev_ims.npy was changed while it was in use",
    ),
]

# --------------------------------------------------------------------------------- captions


def caption(folder: Path, make: Make) -> list[tuple[list[str], bool]]:
    """What both tokenizers make of a caption in JSON, and whether a text encoder stays finite."""
    data = annotations(folder, make)
    words = Vocabulary.build(["a dog runs", "собака", "كلب يجري", "犬"], min_count=1)
    found = []
    for tokenizer in (WordTokenizer(words), TransformersTokenizer(folder / "bert")):
        ids = tokenizer.encode(data.captions[0]).ids
        texts = pad_texts([ids, tokenizer.encode("a dog").ids], tokenizer.pad_id)
        tokens, _ = BiGRU(len(tokenizer), embed_dim=4, dim=4)(texts.ids, texts.mask)
        names = [words.words[i] for i in ids] if isinstance(tokenizer, WordTokenizer) else ids
        found.append((names, bool(tokens.isfinite().all())))
    return found


def said(raw: str) -> Make:
    return entries(sentences=[{"raw": raw, "tokens": []}])


def reads(words: str, pieces: int) -> Check:
    """The words of the one tokenizer, and how many pieces the other one has between its ends."""

    def check(found: list[tuple[list[str], bool]]) -> bool:
        (names, finite), (ids, also_finite) = found
        return finite and also_finite and (names[1:-1], len(ids) - 2) == (words.split(), pieces)

    return check


CAPTIONS = [
    Fault(caption, "empty", said(""), reads("", 0)),
    Fault(caption, "white space", said(" \t\n\u2028\u00a0"), reads("", 0)),
    Fault(caption, "punctuation", said("..."), reads("", 3)),
    Fault(caption, "10,000 words", said("a dog " * 5000), reads("a dog " * 31, 62)),
    Fault(caption, "a word of 100,000 letters", said("a" * 100_000), reads("<unk>", 1)),
    Fault(caption, "emoji", said("A dog 🐶👨‍👩‍👧 runs"), reads("a dog runs", 5)),
    Fault(caption, "emoji alone", said("🐶"), reads("", 1)),
    Fault(caption, "right to left", said("\u202bكلب يجري\u202c"), reads("كلب يجري", 2)),
    Fault(caption, "control characters", said("a\0 \x1bdog\x07"), reads("a dog", 2)),
    Fault(caption, "half a character", said("a \ud83d dog"), reads("a dog", 2)),
    Fault(caption, "names of special tokens", said("<pad> a <end>"), reads("<unk> a <unk>", 7)),
]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(
            fault,
            id=f"{fault.read.__name__}: {fault.name}",
            marks=pytest.mark.extras
            if fault.name.startswith(("avif", "heic")) or fault.read is parquet
            else (),
        )
        for fault in (*PHOTOS, *ANNOTATIONS, *TABLES, *INSIDE, *FEATURES, *CAPTIONS)
    ]
    + [
        pytest.param(fault, id=f"saved_dataset-{fault.name}", marks=pytest.mark.extras)
        for fault in INSIDE_A_DATASET
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF")
def test_fault(
    fault: Fault, tmp_path: Path, bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bert").symlink_to(bert_folder)
    if isinstance(fault.expected, str):
        with pytest.raises(ValueError, match=re.escape(fault.expected)):
            fault.read(tmp_path, fault.make)
        assert not Path("unpickled").exists()
    else:
        assert fault.expected(fault.read(tmp_path, fault.make))


def test_a_wrong_delimiter_is_the_one_hint(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("file_name;caption\na.jpg;a dog\n")
    with pytest.raises(ValueError, match=r"file_column\. Is the delimiter ';'\?$"):
        read_table(path).needed("file_column", None, ("file_name", "image"))
