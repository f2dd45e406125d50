"""Images: where they come from, and a stack of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from itmkit.checks import InputError
from itmkit.data.batch import Images
from itmkit.data.order import seeded
from itmkit.data.preprocessing import Preprocessing
from itmkit.data.relations import box_relations

_SHARES = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))  # pixels in [0, 1]


class BadSampleError(InputError):
    """One image of a dataset cannot be used; the others can.

    Whatever reads an image raises it, and ``ImageTextData(on_error="skip")`` goes on without the
    image. What makes a whole file of the data unusable is another error.
    """


@dataclass
class Regions:
    """One image as features of its regions, or of the cells of a grid.

    Args:
        features: ``(N, D)`` float.
        boxes: ``(N, 4)`` corners ``x1, y1, x2, y2`` relative to the image, in [0, 1]; or None.
        relations: ``(N, N)`` how much every two regions have to do with each other, in [0, 1]; or
            None.
    """

    features: Tensor
    boxes: Tensor | None = None
    relations: Tensor | None = None


class ImageSource(ABC):
    """The images of a split: a folder of photos, a file of features, or drawn ones.

    A subclass sets :attr:`names` and writes :meth:`image`. What it reads in a worker process is
    sent to the training process as it is; pixels in bytes become floats there.

    Attributes:
        names: one an image.
        augments: whether :meth:`image` draws at random, from the global generators of ``torch``,
            ``random`` and ``numpy``. Training then seeds these for every image. True unless a
            source says that it does not.
        preprocessing: of its pixels, or of those that stored features were made of; pixels in
            bytes get its mean and standard deviation. None: they are divided by 255.
    """

    names: Sequence[str]
    augments: bool = True
    preprocessing: Preprocessing | None = None

    @abstractmethod
    def image(self, row: int) -> Tensor | Regions:
        """The image of a row: pixels ``(3, H, W)``, float or bytes (uint8), or :class:`Regions`.

        Raises:
            BadSampleError: if this image cannot be used.
        """

    def serving(self, *, training: bool) -> Self:
        """A copy that augments as training wants it; or not at all, for an evaluation."""
        own = copy(self)
        own.augments = self.augments and training
        return own

    def drawn(self, row: int, seed: int | None) -> Tensor | Regions:
        """As :meth:`image`, with the global generators seeded, where a seed is given."""
        if seed is None:
            return self.image(row)
        with seeded(seed):
            return self.image(row)

    def read(self, rows: Sequence[int], seeds: Sequence[int] | None = None) -> Images:
        """The images of several rows as one stack, as :meth:`image` gives them.

        A subclass that reads many images faster than one by one overrides this too.

        Args:
            rows: of the images.
            seeds: one an image, where :attr:`augments`; None to draw as the global generators are.

        Raises:
            BadSampleError: if one of them cannot be used.
        """
        each: Sequence[int | None] = [None] * len(rows) if seeds is None else seeds
        return collate_images(list(map(self.drawn, rows, each)))

    def as_floats(self, pixels: Tensor) -> Tensor:
        """Pixels in bytes ``(…, 3, H, W)`` as floats, as :attr:`preprocessing` has it."""
        if pixels.dtype != torch.uint8:
            return pixels
        return (self.preprocessing or _SHARES).normalise(pixels)

    def __len__(self) -> int:
        return len(self.names)


def collate_images(
    images: Sequence[Tensor | Regions], *, relation_threshold: float | None = None
) -> Images:
    """Stack pixels of one size, or pad regions to the largest count.

    Args:
        images: pixels ``(3, H, W)``, or :class:`Regions` of ``(N_i, D)``; one kind only.
        relation_threshold: where given, in (0, 1], regions are related (1) or not (0): by whether
            the relations that they come with, or else the IoU of their boxes, reach it.

    Returns:
        Pixels ``(n, 3, H, W)``, or features ``(n, N, D)`` with a mask where the counts differ.

    Raises:
        InputError: if kinds or sizes differ, only some of the images have boxes or relations, or
            there is nothing to which ``relation_threshold`` applies.

    Example:
        >>> stack = collate_images([Regions(torch.ones(2, 4)), Regions(torch.ones(3, 4))])
        >>> tuple(stack.features.shape), stack.mask.sum(1).tolist()
        ((2, 3, 4), [2, 3])
    """
    pixels = [image for image in images if isinstance(image, Tensor)]
    regions = [image for image in images if isinstance(image, Regions)]
    if len(pixels) + len(regions) != len(images) or not images or (pixels and regions):
        kinds = sorted({type(image).__name__ for image in images})
        raise InputError(f"images are of the kinds {kinds}; expected only Tensor or only Regions")
    if pixels:
        _one_only("pixels of the sizes", {tuple(image.shape) for image in pixels})
        # in a data worker into memory that is shared with the training process
        return relate(Images(default_collate(pixels)), relation_threshold)

    _one_only("features of the widths", {image.features.shape[-1] for image in regions})
    counts = torch.tensor([len(image.features) for image in regions])
    largest = int(counts.max())
    features = pad_sequence([image.features for image in regions], batch_first=True)
    equal = bool((counts == largest).all())
    mask = None if equal else torch.arange(largest)[None, :] < counts[:, None]
    boxes = _all_or_none("boxes", [image.boxes for image in regions])
    relations = _all_or_none("relations", [image.relations for image in regions])
    stack = Images(
        features,
        mask,
        pad_sequence(boxes, batch_first=True) if boxes else None,
        _padded_squares(relations, counts.tolist()) if relations else None,
    )
    return relate(stack, relation_threshold)


def relate(images: Images, threshold: float | None) -> Images:
    """A stack whose regions are related (1) or not (0), as :func:`collate_images` does it.

    Args:
        images: the stack.
        threshold: of the relations it has, or else of the IoU of its boxes, in (0, 1]; where None,
            the stack is returned as it is.

    Raises:
        InputError: if there is nothing to which ``threshold`` applies.
    """
    if threshold is None:
        return images
    if images.features.ndim != 3:
        raise InputError(_no_relations(threshold, "pixels"))
    if images.relations is not None:
        return replace(images, relations=(images.relations >= threshold).float())
    if images.boxes is None:
        raise InputError(_no_relations(threshold, "features without boxes"))
    relations = box_relations(images.boxes, threshold)
    if images.mask is not None:
        relations *= images.mask[:, :, None] & images.mask[:, None, :]
    return replace(images, relations=relations)


def without_regions(images: Images, share: float, seeds: Sequence[int]) -> Images:
    """A stack without a share of the regions of each image, drawn by a seed of its own.

    Args:
        images: the stack; its regions stay in their order, and one of each image stays.
        share: of the regions to leave out, in [0, 1).
        seeds: one an image.

    Raises:
        InputError: for pixels.
    """
    if images.features.ndim != 3:
        raise InputError(
            f"region_drop is {share}, but the images are pixels; expected region features or grids "
            "on disk"
        )
    number, width = images.features.shape[:2]
    counts = [width] * number if images.mask is None else images.mask.sum(1).tolist()
    kept = []
    for count, seed in zip(counts, seeds, strict=True):
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        kept.append(order[int(count * share) :].sort().values)
    rows = pad_sequence(kept, batch_first=True, padding_value=-1)
    mask = None if bool((rows >= 0).all()) else rows >= 0
    relations = images.relations
    if relations is not None:  # of regions, and to regions
        relations = _regions(_regions(relations, rows).mT, rows).mT
    boxes = None if images.boxes is None else _regions(images.boxes, rows)
    return Images(_regions(images.features, rows), mask, boxes, relations)


def _regions(part: Tensor, rows: Tensor) -> Tensor:
    """The rows ``(n, k)`` of ``(n, N, D)``, zero where they are -1."""
    places = rows.clamp(min=0)[..., None].expand(-1, -1, part.shape[-1])
    return part.gather(1, places).masked_fill(rows[..., None] < 0, 0)


def _all_or_none(what: str, found: list[Tensor | None]) -> list[Tensor]:
    there = [tensor for tensor in found if tensor is not None]
    if there and len(there) != len(found):
        raise InputError(f"{len(there)} of {len(found)} images have {what}; expected all or none")
    return there


def _padded_squares(squares: list[Tensor], sizes: list[int]) -> Tensor:
    out = squares[0].new_zeros(len(squares), max(sizes), max(sizes))
    for row, (square, size) in enumerate(zip(squares, sizes, strict=True)):
        if square.shape != (size, size):
            raise InputError(
                f"relations of an image have the shape {tuple(square.shape)}; "
                f"expected {(size, size)}, its regions"
            )
        out[row, :size, :size] = square
    return out


def _no_relations(threshold: float, kind: str) -> str:
    return (
        f"relation_threshold is {threshold}, but the images are {kind}; expected regions with "
        "boxes: ShapesDataset(regions=True), PrecompDataset with {split}_boxes.npy, or features "
        "of itmkit extract"
    )


def _one_only(what: str, found: set[object]) -> None:
    if len(found) > 1:
        raise InputError(f"images have {what} {sorted(map(str, found))}; expected one only")
