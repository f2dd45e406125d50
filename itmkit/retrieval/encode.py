"""Encode a split once: every image and every caption, in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from itmkit.checks import InputError, integer_vector, type_of
from itmkit.distributed import world_size
from itmkit.modes import evaluation_mode
from itmkit.retrieval.encoding import Encoding, check_encodings
from itmkit.retrieval.gallery_file import load_gallery, save_gallery
from itmkit.retrieval.model import RetrievalModel, ScoringModel

if TYPE_CHECKING:
    from itmkit.data.batch import Batch, Images, Texts

    Part = TypeVar("Part", Images, Texts)


@dataclass
class Gallery:
    """Encoded images and captions, and which belongs to which.

    Args:
        images: ``n`` encoded images.
        texts: ``m`` encoded captions; ``m`` may be 0, for images that have none.
        image_ids: ``(n,)`` int64, each image once.
        text_image_ids: ``(m,)`` int64, the id of the image each caption belongs to.
        text_ids: ``(m,)`` int64, each caption once.
        names: file name of each image; None where not known.
        captions: sentence of each caption; None where not known.

    Raises:
        InputError: for what is no :class:`Encoding`, or ids that are not integers, one per row, or
            as many names or captions as there are not.
    """

    images: Encoding
    texts: Encoding
    image_ids: Tensor
    text_image_ids: Tensor
    text_ids: Tensor
    names: Sequence[str] | None = None
    captions: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_encodings(images=self.images, texts=self.texts)
        n, m = len(self.images), len(self.texts)
        self.image_ids = integer_vector("image_ids", self.image_ids, n)
        self.text_image_ids = integer_vector("text_image_ids", self.text_image_ids, m)
        self.text_ids = integer_vector("text_ids", self.text_ids, m)
        for name, texts, count in (("names", self.names, n), ("captions", self.captions, m)):
            if texts is not None and len(texts) != count:
                raise InputError(f"{name} has {len(texts)}; expected {count}, one a row")

    @classmethod
    def cat(cls, parts: Sequence[Gallery]) -> Gallery:
        """One gallery of several, without duplicates of images and captions.

        Images are in the order of their ids, captions in that of their images and then their own
        ids: whichever process encoded what, the gallery is the same.

        Raises:
            InputError: no parts.
        """
        if not parts:
            raise InputError("parts is empty; expected at least one gallery")
        image_ids = torch.cat([part.image_ids for part in parts])
        text_image_ids = torch.cat([part.text_image_ids for part in parts])
        text_ids = torch.cat([part.text_ids for part in parts])
        images = sorted(_unseen(image_ids, set()), key=image_ids.tolist().__getitem__)
        owned = list(zip(text_image_ids.tolist(), text_ids.tolist(), strict=True))
        texts = sorted(_unseen(text_ids, set()), key=owned.__getitem__)
        joined = cls(
            _joined([part.images for part in parts]),
            _joined([part.texts for part in parts]),
            image_ids,
            text_image_ids,
            text_ids,
            _texts([part.names for part in parts]),
            _texts([part.captions for part in parts]),
        )
        rows = (torch.tensor(one, dtype=torch.int64) for one in (images, texts))
        return joined.part(*rows)

    @classmethod
    def gathered(cls, parts: Sequence[Gallery]) -> Gallery:
        """One gallery of the parts of all processes, the same on each; see :meth:`cat`."""
        found = [list(parts)] * world_size()
        if world_size() > 1:
            dist.all_gather_object(found, list(parts))
        return cls.cat([part for rank in found for part in rank])

    def part(self, images: Tensor, texts: Tensor) -> Gallery:
        """A gallery of some of the rows of the images and of the captions, int64 tensors."""
        return Gallery(
            self.images[images],
            self.texts[texts],
            self.image_ids[images],
            self.text_image_ids[texts],
            self.text_ids[texts],
            None if self.names is None else [self.names[row] for row in images.tolist()],
            None if self.captions is None else [self.captions[row] for row in texts.tolist()],
        )

    def to(self, device: torch.device | str) -> Gallery:
        """The same with its encodings on a device; the ids stay on the CPU."""
        return replace(self, images=self.images.to(device), texts=self.texts.to(device))

    def save(self, path: str | Path) -> None:
        """Write all of it to one file of safetensors, whole or not at all; see :meth:`load`."""
        save_gallery(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What :meth:`save` wrote, on the CPU. No code of the file is run.

        Args:
            path: of the file; or of the folder of ``itmkit predict``.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: the file is cut short, or holds no gallery.

        Example:
            >>> import tempfile
            >>> two = Encoding(vector=torch.eye(2))
            >>> rows = torch.arange(2)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     Gallery(two, two, rows, rows, rows, ["a.jpg", "b.jpg"]).save(f"{folder}/g")
            ...     again = Gallery.load(f"{folder}/g")
            >>> again.names, again.captions, again.images
            (['a.jpg', 'b.jpg'], None, Encoding(n=2, vector=(2, 2)))
        """
        return cls(**load_gallery(path))


def _texts(parts: list[Sequence[str] | None]) -> list[str] | None:
    """Names or captions of all parts; None where any has none."""
    known = [part for part in parts if part is not None]
    return [text for part in known for text in part] if len(known) == len(parts) else None


def _joined(parts: list[Encoding]) -> Encoding:
    """All rows of some encodings; one without rows and fields where there are none."""
    held = [part for part in parts if len(part)]
    return Encoding.cat(held) if held else Encoding(vector=torch.empty(0, 0))


@contextmanager
def evaluating(model: ScoringModel) -> Iterator[None]:
    """Put a model in evaluation mode without gradients, and every module back as it was.

    A module that was in evaluation mode inside a training model (a frozen teacher) stays so.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
        >>> with evaluating(model):
        ...     model.training, torch.is_grad_enabled()
        (False, False)
        >>> [module.training for module in model.modules()]
        [True, True, False]
    """
    with evaluation_mode(model), torch.no_grad():
        yield


def encode(
    matcher: RetrievalModel, batches: Iterable[Batch], device: torch.device | str = "cpu"
) -> Gallery:
    """Encode every image and caption of some batches, each once.

    The batches are encoded where the matcher is. An image id or text id that was seen before is
    skipped, so an image stored once per caption, or a padded last batch, does no harm.

    Args:
        matcher: the model that encodes.
        batches: evaluation batches, for example a data loader.
        device: where the encodings are kept.

    Returns:
        The gallery, in the order in which images and captions first occurred, ids on the CPU.

    Raises:
        InputError: no batches, batches that hold no image, or a model that gives no Encoding.
    """
    from itmkit.data.batch import Batch, check_batch

    if isinstance(batches, (Batch, Tensor, str)) or not isinstance(batches, Iterable):
        raise InputError(
            f"batches is {type_of(batches)}; expected an iterable of Batch, such as [batch] or a "
            "data loader"
        )
    images: list[Encoding] = []
    texts: list[Encoding] = []
    ids: tuple[list[int], list[int], list[int]] = ([], [], [])
    seen_images: set[int] = set()
    seen_texts: set[int] = set()
    with evaluating(matcher):
        for batch in batches:
            check_batch(batch)
            rows = _unseen(batch.image_ids, seen_images)
            if rows:
                part = matcher.encode_image(_take(batch.images, rows, matcher.device))
                images.append(_checked(part, matcher, "encode_image").to(device))
                ids[0].extend(batch.image_ids[rows].tolist())
            rows = _unseen(batch.text_ids, seen_texts)
            if rows:
                part = matcher.encode_text(_take(batch.texts, rows, matcher.device))
                texts.append(_checked(part, matcher, "encode_text").to(device))
                ids[1].extend(batch.text_image_ids[rows].tolist())
                ids[2].extend(batch.text_ids[rows].tolist())
    if not images:
        raise InputError(f"batches held 0 images and {len(ids[2])} captions; expected an image")
    image_ids, owners, text_ids = (torch.tensor(one, dtype=torch.int64) for one in ids)
    return Gallery(_joined(images), _joined(texts), image_ids, owners, text_ids)


def _checked(part: object, matcher: RetrievalModel, verb: str) -> Encoding:
    """What a model of somebody's own gives, if it is an encoding."""
    if not isinstance(part, Encoding):
        raise InputError(
            f"{type(matcher).__name__}.{verb} gives {type_of(part)}; expected an Encoding, such as "
            "Encoding(vector=...)"
        )
    return part


def _unseen(ids: Tensor, seen: set[int]) -> list[int]:
    """Rows whose id comes for the first time; the ids are then seen."""
    rows = []
    for row, value in enumerate(ids.tolist()):
        if value not in seen:
            seen.add(value)
            rows.append(row)
    return rows


def _take(part: Part, rows: list[int], device: torch.device) -> Part:
    """Select rows of images or texts and move them."""
    whole = len(rows) == len(part)
    values = {
        field.name: (value if whole else value[rows]).to(device)
        for field in fields(part)
        if (value := getattr(part, field.name)) is not None
    }
    return replace(part, **values)
