"""From single images to a stack of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from itmkit.data.batch import Images
from itmkit.data.dataset import Regions


def collate_images(images: Sequence[Tensor | Regions]) -> Images:
    """Stack pixels of one size, or pad regions to the largest count.

    Args:
        images: pixels ``(3, H, W)``, or :class:`Regions` of ``(N_i, D)``; one kind only.

    Returns:
        Pixels ``(n, 3, H, W)``, or features ``(n, N, D)`` with a mask where the counts differ.

    Raises:
        ValueError: if kinds or sizes differ, or only some of the images have boxes.

    Example:
        >>> stack = collate_images([Regions(torch.ones(2, 4)), Regions(torch.ones(3, 4))])
        >>> tuple(stack.features.shape), stack.mask.sum(1).tolist()
        ((2, 3, 4), [2, 3])
    """
    pixels = [image for image in images if isinstance(image, Tensor)]
    regions = [image for image in images if isinstance(image, Regions)]
    if len(pixels) + len(regions) != len(images) or not images or (pixels and regions):
        kinds = sorted({type(image).__name__ for image in images})
        raise ValueError(f"images are of the kinds {kinds}; expected only Tensor or only Regions")
    if pixels:
        _one_only("pixels of the sizes", {tuple(image.shape) for image in pixels})
        return Images(torch.stack(pixels))

    _one_only("features of the widths", {image.features.shape[-1] for image in regions})
    counts = torch.tensor([len(image.features) for image in regions])
    largest = int(counts.max())
    features = pad_sequence([image.features for image in regions], batch_first=True)
    equal = bool((counts == largest).all())
    mask = None if equal else torch.arange(largest)[None, :] < counts[:, None]
    boxes = [image.boxes for image in regions if image.boxes is not None]
    if not boxes:
        return Images(features, mask)
    if len(boxes) != len(regions):
        raise ValueError(f"{len(boxes)} of {len(regions)} images have boxes; expected all or none")
    return Images(features, mask, pad_sequence(boxes, batch_first=True))


def _one_only(what: str, found: set[object]) -> None:
    if len(found) > 1:
        raise ValueError(f"images have {what} {sorted(map(str, found))}; expected one only")
