"""One HTML page of hits with small pictures, that needs no other file and no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from itmkit.data.images import BadSampleError
from itmkit.data.photo import read_photo
from itmkit.files import user_path, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from itmkit.index.search import Hit, Index

SIDE = 240  # pixels of a small picture's longer side

_MOST_PIXELS = 100_000_000


@dataclass
class Shown:
    """A picture on the page.

    Args:
        picture: a file, an image, or None where it cannot be read.
        name: below it.
        text: below the name.
        mark: whether it is known to be right or wrong: a coloured frame.
    """

    picture: Path | Image.Image | None
    name: str
    text: str = ""
    mark: Literal["right", "wrong", ""] = ""


@dataclass
class Group:
    """A query and its hits.

    Args:
        heading: above the hits.
        hits: best first.
        picture: the query, where it is one.
        words: whether the hits are sentences, in a list.
    """

    heading: str
    hits: list[Shown] = field(default_factory=list)
    picture: Path | Image.Image | None = None
    words: bool = False


def write_page(path: str | Path, title: str, groups: Sequence[Group], *, note: str = "") -> None:
    """Write the page, all of it or nothing.

    Args:
        path: of the HTML file.
        title: of the page.
        groups: queries with their hits.
        note: a sentence below the title.
    """
    content = [
        {
            "heading": group.heading,
            "picture": thumbnail(group.picture),
            "words": group.words,
            "hits": [
                {
                    "picture": thumbnail(shown.picture),
                    "name": shown.name,
                    "text": shown.text,
                    "mark": shown.mark,
                }
                for shown in group.hits
            ],
        }
        for group in groups
    ]
    write_text(path, render("hits.html.jinja", title=title, note=note, groups=content))


def write_hits(
    path: str | Path,
    index: Index,
    hits: Sequence[Hit],
    query: str | None = None,
    *,
    image: str | Path | None = None,
    where: str | None = None,
) -> None:
    """Write the page of what a search of an index found.

    Args:
        path: of the page.
        index: that was searched.
        hits: what :meth:`itmkit.index.Index.search` found.
        query: the sentence that was searched, if any.
        image: the picture that was searched, if any.
        where: the condition on the columns that was set, if any.
    """
    picture = None if image is None else user_path(image)
    shown = []
    for hit in hits:
        chance = "" if hit.probability is None else f", {hit.probability:.0%}"
        name = str(hit.path.relative_to(index.root))
        shown.append(Shown(hit.path, name, f"{hit.score:.3f}{chance}"))
    title = " + ".join(([f"“{query}”"] if query else []) + ([picture.name] if picture else []))
    note = index.verdict(hits) or f"{len(index)} pictures"
    if where is not None:
        note += f", those with {where}"
    write_page(path, title, [Group("", shown, picture)], note=note)


def render(template: str, *, package: str = "itmkit.report", **content: Any) -> str:
    """A page from a template; text is escaped, halves of characters replaced.

    Args:
        template: file in ``templates`` of the package, or of this one.
        package: its name.
        **content: what the template shows.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader

    pages = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("itmkit.report")]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = pages.get_template(template).render(**content)
    return text.encode("utf-8", "replace").decode("utf-8")


def thumbnail(
    picture: Path | Image.Image | None, *, side: int = SIDE, quality: int = 70
) -> str | None:
    """A small copy as a ``data:`` address; None where the file cannot be read.

    Args:
        picture: a file or an image.
        side: most pixels of the longer side.
        quality: of the WebP, 0 to 100.
    """
    content = webp(picture, side=side, quality=quality)
    return None if content is None else data_address(content)


def data_address(content: bytes) -> str:
    """A WebP as the address of an image in the page itself."""
    return "data:image/webp;base64," + base64.b64encode(content).decode()


def figure_webp(figure: Figure, *, dpi: int = 80, quality: int = 60) -> bytes:
    """A figure of matplotlib in WebP."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=dpi, pil_kwargs={"compress_level": 0})
    drawn = Image.open(content)
    made = webp(drawn, side=max(drawn.size), quality=quality)
    assert made is not None  # it is no file
    return made


def webp(picture: Path | Image.Image | None, *, side: int, quality: int) -> bytes | None:
    """A copy in WebP, not larger than ``side``; None where the file cannot be read."""
    if isinstance(picture, Path):
        try:
            picture = read_photo(picture, side=side, max_pixels=_MOST_PIXELS)
        except BadSampleError:
            return None
    if picture is None:
        return None
    small = picture.convert("RGB")
    small.thumbnail((side, side))
    content = io.BytesIO()
    small.save(content, "WEBP", quality=quality)
    return content.getvalue()
