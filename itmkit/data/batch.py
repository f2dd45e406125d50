"""What a training or evaluation step receives: images, texts and whose they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

from torch import Tensor

from itmkit.checks import InputError, integer_vector, type_of


class _Stack:
    """Named tensors with a row an item; some may be None."""

    def rows(self, which: slice | Sequence[int] | Tensor) -> Self:
        """Some of the items, padded as before."""
        return self._each(lambda tensor: tensor[which])

    def pin_memory(self) -> Self:
        """The same items in page-locked memory, for a quick copy to a GPU."""
        return self._each(Tensor.pin_memory)

    def _each(self, function: Callable[[Tensor], Tensor]) -> Self:
        tensors = {name: value for name, value in vars(self).items() if value is not None}
        return type(self)(**{name: function(value) for name, value in tensors.items()})


@dataclass
class Images(_Stack):
    """A stack of images, as pixels or as region (or grid) features.

    Args:
        features: pixels ``(n, 3, H, W)``, or padded region features ``(n, N, D)``.
        mask: ``(n, N)`` bool, True on real regions; None where nothing is padded.
        boxes: ``(n, N, 4)`` corners ``x1, y1, x2, y2`` relative to the image, in [0, 1]; or None.
        relations: ``(n, N, N)`` how much every two regions of an image have to do with each other,
            such as :func:`box_relations`, in [0, 1]; zero where padded; or None.
    """

    features: Tensor
    mask: Tensor | None = None
    boxes: Tensor | None = None
    relations: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features)


@dataclass
class Texts(_Stack):
    """A stack of tokenised captions.

    Args:
        ids: ``(m, L)`` int64 token ids, padded at the end.
        mask: ``(m, L)`` bool, True on real tokens.
        features: ``(m, L, D)`` float, what a frozen text model gave for the tokens and
            ``text_features`` of the data read, zero on padding; or None.
    """

    ids: Tensor
    mask: Tensor
    features: Tensor | None = None

    @property
    def inputs(self) -> Tensor:
        """What a text encoder is called with, beside the mask: the features, or else the ids."""
        return self.ids if self.features is None else self.features

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Batch:
    """Images, texts, and which belongs to which.

    In training ``images`` and ``texts`` come pair by pair: with ``K`` noisy views a caption, texts
    ``i*K … i*K+K-1`` are views of the one caption of image ``i``. In evaluation an image comes
    once, followed by all of its captions.

    Args:
        images: ``n`` images.
        texts: ``m`` captions.
        image_ids: ``(n,)`` int64, the row of each image in its dataset.
        text_image_ids: ``(m,)`` int64, the row of the image each caption belongs to.
        text_ids: ``(m,)`` int64, the row of each caption in its dataset.
        sizes: in training, number of images of this batch on every process; None where not known.
    """

    images: Images
    texts: Texts
    image_ids: Tensor
    text_image_ids: Tensor
    text_ids: Tensor
    sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check_images(self.images, allow_empty=True)
        check_texts(self.texts, allow_empty=True)
        n, m = len(self.images), len(self.texts)
        for name, count in {"image_ids": n, "text_image_ids": m, "text_ids": m}.items():
            setattr(self, name, integer_vector(name, getattr(self, name), count))

    def __len__(self) -> int:
        return len(self.image_ids)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        parts = {name: value for name, value in vars(self).items() if name != "sizes"}
        return replace(self, **{name: value.pin_memory() for name, value in parts.items()})


def check_images(images: object, *, allow_empty: bool = False) -> None:
    """Raise unless these are :class:`Images` of tensors, one or more: what a matcher encodes.

    Raises:
        InputError: with what was given, and how to make images of it.
    """
    if not isinstance(images, Images):
        raise InputError(
            f"images is {type_of(images)}; expected Images, such as Images(features=images) of "
            "pixels (n, 3, H, W) or region features (n, N, D)"
        )
    _check_tensors("images", images, allow_empty=allow_empty)


def check_texts(texts: object, *, allow_empty: bool = False) -> None:
    """Raise unless these are :class:`Texts` of tensors, one or more: what a matcher encodes.

    Raises:
        InputError: with what was given, and how to make texts of it.
    """
    if not isinstance(texts, Texts):
        raise InputError(
            f"texts is {type_of(texts)}; expected Texts, such as pad_texts([tokenizer.encode("
            "caption).ids for caption in captions], tokenizer.pad_id) with the tokenizer of the "
            "data"
        )
    _check_tensors("texts", texts, allow_empty=allow_empty)


def check_batch(batch: object) -> None:
    """Raise unless this is a :class:`Batch`.

    Raises:
        InputError: with what was given.
    """
    if not isinstance(batch, Batch):
        raise InputError(
            f"batch is {type_of(batch)}; expected a Batch, such as those of the loaders of "
            "ImageTextData"
        )


def _check_tensors(name: str, part: Images | Texts, *, allow_empty: bool) -> None:
    for field in fields(part):
        value = getattr(part, field.name)
        if not isinstance(value, Tensor) and not (value is None and field.default is None):
            raise InputError(f"{name}.{field.name} is {type_of(value)}; expected a tensor")
    if not allow_empty and not len(part):
        raise InputError(f"{name} is empty; expected one or more")
