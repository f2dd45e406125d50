"""What every dataset is: images, their captions, and which caption is true of which image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from itmkit.checks import InputError

if TYPE_CHECKING:
    from itmkit.data.batch import Images
    from itmkit.data.preprocessing import Preprocessing
    from itmkit.data.vocabulary import Vocabulary


class BadSampleError(InputError):
    """One image of a dataset cannot be used; the others can.

    :meth:`ImageTextDataset.image` raises it, and ``ImageTextData(on_error="skip")`` goes on without
    the image. What makes a whole file of the data unusable is another error.
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


class ImageTextDataset(Dataset[tuple["Tensor | Regions", list[str]]], ABC):
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
    #: whether :meth:`image` draws at random; training then seeds the global generators for it
    augments: bool = True

    def __init__(
        self,
        split: str,
        names: Sequence[str],
        captions: Sequence[str] | None,
        caption_images: Sequence[int] | Tensor = (),
    ) -> None:
        super().__init__()
        rows = torch.as_tensor(caption_images, dtype=torch.int64)
        if not names:
            raise InputError(f"split {split!r} has no images; expected at least one")
        if captions is not None and not captions:
            raise InputError(f"split {split!r} has no captions; expected at least one")
        captions = captions or []
        if rows.shape != (len(captions),):
            raise InputError(
                f"caption_images has shape {tuple(rows.shape)}; expected ({len(captions)},), "
                "one image row a caption"
            )
        if captions and (int(rows.min()) < 0 or int(rows.max()) >= len(names)):
            raise InputError(
                f"caption_images goes from {int(rows.min())} to {int(rows.max())}; "
                f"expected rows of the {len(names)} images"
            )
        self.split = split
        self.names = list(names)
        self.captions = list(captions)
        self.caption_images = rows
        without = len(names) - len(rows.unique())
        if captions and without:
            from lightning.pytorch.utilities import rank_zero_warn

            rank_zero_warn(
                f"{without} of the {len(names)} images of the split {split!r} have no captions: "
                "they are not trained on; an evaluation searches them but has no query for them",
                stacklevel=5,
            )

    @abstractmethod
    def image(self, row: int) -> Tensor | Regions:
        """The image of a row: pixels ``(3, H, W)``, or :class:`Regions`.

        Random augmentation draws from the global generators of ``torch``, ``random`` and
        ``numpy``, which training seeds anew for every item unless :attr:`augments` is False.

        Raises:
            BadSampleError: if this image cannot be used.
        """

    def read_images(self, rows: Sequence[int]) -> Images:
        """The images of several rows as one stack, each as :meth:`image` gives it.

        A subclass that can read many images faster than one by one overrides this too.

        Raises:
            BadSampleError: if one of them cannot be used.
        """
        from itmkit.data.collate import collate_images

        return collate_images([self.image(row) for row in rows])

    def in_bytes(self) -> ImageTextDataset:
        """The same images with their pixels as bytes, where there are such, to send and store.

        :meth:`normalise` makes the pixels of them. By default, the dataset itself.
        """
        return self

    def normalise(self, images: Images) -> Images:
        """A stack of :meth:`in_bytes` as :meth:`read_images` gives it."""
        return images

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for base in cls.__mro__:
            if "read_images" in vars(base):
                break
            if "image" in vars(base):  # its own images, and not those of an inherited read_images
                cls.read_images = ImageTextDataset.read_images  # type: ignore[method-assign]
                break

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
        order, ends = self._captions_by_image
        start = int(ends[row - 1]) if row else 0
        return order[start : int(ends[row])].tolist()

    def __getitem__(self, row: int) -> tuple[Tensor | Regions, list[str]]:
        return self.image(row), [self.captions[caption] for caption in self.captions_of(row)]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _captions_by_image(self) -> tuple[Tensor, Tensor]:
        counts = torch.bincount(self.caption_images, minlength=len(self.names))
        return torch.argsort(self.caption_images, stable=True), counts.cumsum(0)
