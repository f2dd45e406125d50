"""What a training or evaluation step receives: images, texts and whose they are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Images:
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

    def pin_memory(self) -> Images:
        """The same images in page-locked memory, for a quick copy to a GPU."""
        return Images(
            self.features.pin_memory(),
            _pinned(self.mask),
            _pinned(self.boxes),
            _pinned(self.relations),
        )


@dataclass
class Texts:
    """A stack of tokenised captions.

    Args:
        ids: ``(m, L)`` int64 token ids, padded at the end.
        mask: ``(m, L)`` bool, True on real tokens.
    """

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def pin_memory(self) -> Texts:
        """The same texts in page-locked memory."""
        return Texts(self.ids.pin_memory(), self.mask.pin_memory())


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

    def __len__(self) -> int:
        return len(self.image_ids)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return Batch(
            self.images.pin_memory(),
            self.texts.pin_memory(),
            self.image_ids.pin_memory(),
            self.text_image_ids.pin_memory(),
            self.text_ids.pin_memory(),
            self.sizes,
        )


def _pinned(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.pin_memory()
