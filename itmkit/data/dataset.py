"""What every dataset is: captions, their images, and which caption is true of which image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Self

from torch import Tensor
from torch.utils.data import Dataset

from itmkit.checks import InputError
from itmkit.data.captions import Captions
from itmkit.data.images import ImageSource, Regions

if TYPE_CHECKING:
    from itmkit.data.preprocessing import Preprocessing
    from itmkit.data.vocabulary import Vocabulary


class ImageTextDataset(Dataset[tuple[Tensor | Regions, list[str]]], ABC):
    """One split of a set of captioned images. A subclass writes :meth:`image`.

    An item is an image with the text of its captions.

    Args:
        split: name of the split, such as ``"train"``.
        names: one name an image: its file name or id.
        captions: the captions of the split; None for images that have none, which can be encoded
            and their features extracted.
        caption_images: for every caption the row of its image. An image without captions is not
            trained on; an evaluation searches it but has no query for it. A warning counts them.

    Raises:
        InputError: if the split is empty, or the arguments do not fit each other.

    Example:
        >>> import torch
        >>> class Grey(ImageTextDataset):
        ...     def image(self, row):
        ...         return torch.full((3, 2, 2), row / 10)
        >>> grey = Grey("train", ["a", "b"], ["dark", "black", "light"], [0, 0, 1])
        >>> len(grey), grey.captions_of(0), grey[1][1]
        (2, [0, 1], ['light'])
        >>> grey.relevance(torch.tensor([0, 1]), torch.tensor([1, 2])).tolist()
        [[True, False], [False, True]]
    """

    #: the word vocabulary that belongs to this data, where it has one of its own
    vocabulary: Vocabulary | None = None
    #: how its photos become pixels, or became the pixels of stored features; None where not known
    preprocessing: Preprocessing | None = None
    #: the id of each caption in its source, such as COCO's; None where not known
    sentence_ids: list[int] | None = None

    def __init__(
        self,
        split: str,
        names: Sequence[str],
        captions: Sequence[str] | None,
        caption_images: Sequence[int] | Tensor = (),
    ) -> None:
        super().__init__()
        own = self._captions = Captions(split, names, captions, caption_images)
        self.split = split
        self.names, self.captions = own.names, own.sentences
        self.caption_images = own.caption_images
        without = len(self.names) - len(self.caption_images.unique())
        if self.captions and without:
            from lightning.pytorch.utilities import rank_zero_warn

            rank_zero_warn(
                f"{without} of the {len(names)} images of the split {split!r} have no captions: "
                "they are not trained on; an evaluation searches them but has no query for them",
                stacklevel=5,
            )

    @abstractmethod
    def image(self, row: int) -> Tensor | Regions:
        """The image of a row: pixels ``(3, H, W)``, or :class:`Regions`.

        Pixels are floats, or bytes (uint8) that training divides by 255. Random augmentation draws
        from the global generators of ``torch``, ``random`` and ``numpy``, which training seeds anew
        for every item.

        Raises:
            BadSampleError: if this image cannot be used.
        """

    @property
    def source(self) -> ImageSource:
        """What batches read their images from: here :meth:`image`, one by one."""
        return _OneByOne(self)

    def relevance(self, image_rows: Tensor, caption_rows: Tensor) -> Tensor:
        """Which captions are true of which images: by default, each of its own image only.

        Args:
            image_rows: ``(n,)`` int64.
            caption_rows: ``(m,)`` int64.

        Returns:
            ``(n, m)`` bool.
        """
        return self.caption_images[caption_rows.cpu()][None, :] == image_rows.cpu()[:, None]

    def captions_of(self, row: int) -> list[int]:
        """The rows of an image's captions, in their order."""
        return self._captions.rows_of(row)

    def __getitem__(self, row: int) -> tuple[Tensor | Regions, list[str]]:
        return self.image(row), [self.captions[caption] for caption in self.captions_of(row)]

    def __len__(self) -> int:
        return len(self.names)


class CaptionedImages(ImageTextDataset):
    """Captions with the images of a source.

    Args:
        captions: the captions of a split.
        images: the images of the split, in the same order.

    Raises:
        InputError: if the images are not those of the captions.

    Example:
        >>> from itmkit.data import PhotoFolder
        >>> captions = Captions.of_images("val", {"a.jpg": ["a dog"], "b.jpg": ["a cat"]})
        >>> photos = PhotoFolder("val", captions.names, "photos")
        Traceback (most recent call last):
        FileNotFoundError: folder='photos' is not a folder
    """

    def __init__(self, captions: Captions, images: ImageSource) -> None:
        super().__init__(
            captions.split, captions.names, captions.sentences or None, captions.caption_images
        )
        other = [own for own, name in zip(images.names, self.names, strict=False) if own != name]
        if other or len(images) != len(self):
            found = f"{other[0]!r} for another one" if other else f"{len(images)} images"
            raise InputError(f"images has {found}; expected the {len(self)} names of captions")
        self._source = images
        self.preprocessing = images.preprocessing
        self.sentence_ids = captions.sentence_ids

    def image(self, row: int) -> Tensor | Regions:
        """The image of a row: pixels ``(3, H, W)`` as floats, or :class:`Regions`.

        Raises:
            BadSampleError: if this image cannot be used.
        """
        image = self._source.image(row)
        return self._source.as_floats(image) if isinstance(image, Tensor) else image

    def with_images(self, images: ImageSource) -> CaptionedImages:
        """The same captions with the images of another source, such as their stored features.

        Raises:
            InputError: if the images are not those of the captions.
        """
        return CaptionedImages(self._captions, images)

    @property
    def source(self) -> ImageSource:
        """The source; or :meth:`image`, one by one, where a subclass overrides that."""
        return self._source if type(self).image is CaptionedImages.image else super().source


class _OneByOne(ImageSource):
    """What a dataset's own ``image`` gives; it may draw at random."""

    def __init__(self, dataset: ImageTextDataset) -> None:
        self.dataset, self.names = dataset, dataset.names
        self.preprocessing = dataset.preprocessing

    def serving(self, *, training: bool) -> Self:
        own = super().serving(training=training)
        if isinstance(self.dataset, CaptionedImages):  # a subclass, which changes its images
            own.dataset = dataset = copy(self.dataset)
            dataset._source = dataset._source.serving(training=training)
        return own

    def image(self, row: int) -> Tensor | Regions:
        return self.dataset.image(row)
