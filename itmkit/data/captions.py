"""The captions of a split, and the image of each."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

import torch
from torch import Tensor

from itmkit.checks import InputError

_NOT_OF_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can hold it, UTF-8 cannot
_ALIASES = {"val": ("validation", "valid", "dev"), "validation": ("val", "valid", "dev")}


class Captions:
    """The sentences of a split, and the image of each: what a reader of a format returns.

    With an :class:`~itmkit.data.ImageSource` of the same images it makes a dataset, see
    :class:`~itmkit.data.CaptionedImages`.

    Args:
        split: name of the split, such as ``"train"``.
        names: one name an image: its file name or id.
        sentences: the captions; None for images that have none, which can be encoded and their
            features extracted.
        caption_images: ``(m,)`` for every caption the row of its image; an image may have none.
        sentence_ids: the id of each caption in its source, such as COCO's; None where not known.

    Raises:
        InputError: if there are no images or no captions, or the arguments do not fit each other.

    Example:
        >>> captions = Captions.of_images("val", {"a.jpg": ["a dog", "a red dog"], "b.jpg": ["a"]})
        >>> captions.sentences, captions.caption_images.tolist(), captions.rows_of(0)
        (['a dog', 'a red dog', 'a'], [0, 0, 1], [0, 1])
    """

    def __init__(
        self,
        split: str,
        names: Sequence[str],
        sentences: Sequence[str] | None,
        caption_images: Sequence[int] | Tensor = (),
        sentence_ids: Sequence[int] | None = None,
    ) -> None:
        rows = torch.as_tensor(caption_images, dtype=torch.int64)
        if not names:
            raise InputError(f"split {split!r} has no images; expected at least one")
        if sentences is not None and not sentences:
            raise InputError(f"split {split!r} has no captions; expected at least one")
        sentences = sentences or []
        if rows.shape != (len(sentences),):
            raise InputError(
                f"caption_images has shape {tuple(rows.shape)}; expected ({len(sentences)},), "
                "one image row a caption"
            )
        if sentences and (int(rows.min()) < 0 or int(rows.max()) >= len(names)):
            raise InputError(
                f"caption_images goes from {int(rows.min())} to {int(rows.max())}; "
                f"expected rows of the {len(names)} images"
            )
        if sentence_ids is not None and len(sentence_ids) != len(sentences):
            raise InputError(
                f"sentence_ids has {len(sentence_ids)}; expected {len(sentences)}, one a caption"
            )
        self.split = split
        self.sentence_ids = None if sentence_ids is None else list(sentence_ids)
        self.names = list(names)
        self.sentences = list(sentences)
        self.caption_images = rows

    @classmethod
    def of_images(cls, split: str, images: Mapping[str, Sequence[str]]) -> Captions:
        """Captions of images by their names; of images without captions, where none has any."""
        groups = list(images.values())
        sentences = [sentence for group in groups for sentence in group]
        rows = [row for row, group in enumerate(groups) for _ in group]
        return cls(split, list(images), sentences or None, rows)

    def rows_of(self, image: int) -> list[int]:
        """The rows of an image's captions, in their order."""
        order, ends = self._by_image
        start = int(ends[image - 1]) if image else 0
        return order[start : int(ends[image])].tolist()

    @cached_property
    def _by_image(self) -> tuple[Tensor, Tensor]:
        counts = torch.bincount(self.caption_images, minlength=len(self.names))
        return torch.argsort(self.caption_images, stable=True), counts.cumsum(0)

    def __repr__(self) -> str:
        return f"Captions({self.split!r}: {len(self.sentences)} of {len(self.names)} images)"


def clean_sentence(text: str) -> str:
    r"""A caption on one line, as UTF-8 can hold it.

    Example:
        >>> clean_sentence(" a dog\n runs ")
        'a dog runs'
    """
    return _LONE_SURROGATE.sub("\ufffd", " ".join(text.split()))


def fits_a_line(name: str) -> bool:
    r"""Whether a name has no control characters and is UTF-8.

    Example:
        >>> fits_a_line("été.jpg"), fits_a_line("two\nlines.jpg"), fits_a_line("\udcff.jpg")
        (True, False, False)
    """
    return not _NOT_OF_A_LINE.search(name)


def leads_out(name: str) -> bool:
    r"""Whether a relative path may leave its folder, on any system.

    Example:
        >>> leads_out("../a.jpg"), leads_out("/a.jpg"), leads_out("C:a.jpg"), leads_out("b/a.jpg")
        (True, True, True, False)
    """
    paths = PurePosixPath(name), PureWindowsPath(name)
    return any(path.anchor or ".." in path.parts for path in paths)


def split_names(split: str) -> tuple[str, ...]:
    """What a split may be called in a file: ``val`` as others call it, too."""
    return (split, *_ALIASES.get(split, ()))


def plain_name(name: str) -> str:
    """A name as names are compared: without white space around it, accents as one character."""
    return unicodedata.normalize("NFC", name.strip())


def check_name(name: str, source: Path | str) -> None:
    """Refuse a name that leads out of its folder, or that a line of text cannot hold.

    Args:
        name: relative path, as ``source`` has it.
        source: the file to name in the error, or a place in it.

    Raises:
        InputError: if it is refused.
    """
    if leads_out(name) or name in ("", ".") or not fits_a_line(name):
        raise InputError(f"{source} names {name!r}; expected a file inside the image folder")


def check_unique(names: Sequence[str], path: Path) -> None:
    """Refuse names of which one is there twice.

    Raises:
        InputError: with the file and the name.
    """
    for name, times in Counter(names).most_common(1):
        if times > 1:
            raise InputError(
                f"{path} names {name!r} {times} times; expected each image once a split"
            )
