"""Training captions at images that they do not describe, for studies of noisy correspondence."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor

from itmkit.checks import InputError, check_seed, check_share
from itmkit.data.captions import Captions
from itmkit.data.dataset import CaptionedImages, ImageTextDataset
from itmkit.data.table import write_table

_PART = 256  # pairs whose truth is asked for at a time
_MOST_ROUNDS = 1000


class SwappedCaptions(CaptionedImages):
    """A split of which a share of the captions change places, so that none is true any more.

    Chosen captions are dealt anew to the images that they are of: every image keeps as many
    captions as it had. A caption that the dataset knows to be true of its new image
    (:meth:`~itmkit.data.ImageTextDataset.relevance`) is dealt again. As in NCR (Huang et al.,
    NeurIPS 2021) and its successors, but for these: they only shuffle, so a few of the shuffled
    captions stay true there.

    Which captions change places follows from the dataset, the rate and the seed alone.
    :meth:`relevance` knows of the new images only, as a model does.

    Args:
        dataset: the split.
        rate: share of the captions that change places, in [0, 1].
        seed: of the draws.

    Raises:
        InputError: a rate out of its range, or captions that cannot all be made false.

    Attributes:
        swapped: rows of the captions that changed places, in order, ``(k,)`` int64.

    Example:
        >>> from itmkit.data import ShapesDataset
        >>> shapes = ShapesDataset("train", length=20)
        >>> noisy = SwappedCaptions(shapes, rate=0.2)
        >>> len(noisy.swapped)
        20
        >>> row = noisy.swapped[:1]
        >>> shapes.relevance(noisy.caption_images[row], row).item()
        False
    """

    def __init__(self, dataset: ImageTextDataset, *, rate: float, seed: int = 0) -> None:
        check_share(rate=rate)
        check_seed(seed=seed)
        owners = dataset.caption_images.clone()
        generator = Generator().manual_seed(seed)
        count = round(rate * len(owners))
        chosen = torch.randperm(len(owners), generator=generator)[:count].sort().values
        owners[chosen] = _dealt_anew(dataset, chosen, generator)
        captions = Captions(
            dataset.split, dataset.names, dataset.captions, owners, dataset.sentence_ids
        )
        super().__init__(captions, dataset.source)
        self.vocabulary = dataset.vocabulary
        self.swapped = chosen
        self._own_images = dataset.caption_images

    def write(self, path: Path) -> None:
        """Write the captions that changed places as CSV: ``image``, ``caption``, ``own_image``."""
        images = (self.caption_images[self.swapped], self._own_images[self.swapped])
        places = zip(self.swapped.tolist(), *(own.tolist() for own in images), strict=True)
        rows = ((self.names[now], self.captions[row], self.names[old]) for row, now, old in places)
        write_table(path, ("image", "caption", "own_image"), rows)


def _dealt_anew(dataset: ImageTextDataset, chosen: Tensor, generator: Generator) -> Tensor:
    """The images of some captions in another order, in which no caption is true of its image."""
    count = len(chosen)
    images = dataset.caption_images[chosen]
    drawn = torch.arange(count)  # captions whose images are dealt
    for _ in range(_MOST_ROUNDS):
        images[drawn] = images[drawn[torch.randperm(len(drawn), generator=generator)]]
        true = torch.cat(
            [
                dataset.relevance(images[part], chosen[part]).diagonal()
                for part in torch.arange(count).split(_PART)
            ]
        )
        if not true.any():
            return images
        wrong = true.nonzero()[:, 0]
        others = torch.randint(count, (len(wrong) + 1,), generator=generator)
        drawn = torch.cat([wrong, others]).unique()
    raise InputError(
        f"noise_rate chooses {count} of the {len(dataset.captions)} captions of the split "
        f"{dataset.split!r}, which are true of each other's images; expected another rate or seed, "
        "or more images"
    )
