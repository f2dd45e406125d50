"""The built-in dataset: procedurally drawn scenes, five sentences each, exact relevance."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from itmkit.checks import check_choice, check_count
from itmkit.data import scenes
from itmkit.data.captions import Captions
from itmkit.data.dataset import CaptionedImages
from itmkit.data.images import ImageSource, Regions
from itmkit.data.preprocessing import Preprocessing
from itmkit.data.vocabulary import RESERVED, Vocabulary

CAPTIONS_PER_SCENE = 5
DEFAULT_LENGTH = {"train": 6000, "val": 1000, "test": 1000}
SIBLINGS = 2  # a scene, and the same with the colours or the places of two things swapped

# A family of scenes belongs to the split that its signature hashes to: splits are disjoint.
_SHARES = {"train": range(8), "val": range(8, 9), "test": range(9, 10)}
_MEAN, _STD = 0.4, 0.25  # of the pixels, about
_CROP = 12  # side of a region's crop
_KEPT = 16_384  # pictures kept once painted


class DrawnScenes(ImageSource):
    """Scenes as images, painted when asked for; see :class:`ShapesDataset`."""

    augments = False

    def __init__(
        self,
        split: str,
        drawn: Sequence[scenes.Scene],
        *,
        seed: int,
        image_size: int,
        regions: bool,
    ) -> None:
        self.split, self.scenes, self.seed = split, drawn, seed
        self.image_size, self.regions = image_size, regions
        if not regions:
            self.preprocessing = Preprocessing(image_size, mean=(_MEAN,) * 3, std=(_STD,) * 3)
        self.names = [f"{split}-{row}" for row in range(len(drawn))]
        self._painted: dict[int, np.ndarray] = {}

    def pixels(self, row: int) -> np.ndarray:
        """The picture of a scene: ``(image_size, image_size, 3)`` uint8."""
        if row not in self._painted:
            picture = scenes.paint(
                self.scenes[row], self.image_size, _rng(self.split, "paint", self.seed, row)
            )
            if len(self._painted) >= _KEPT:
                return picture
            self._painted[row] = picture
        return self._painted[row]

    def image(self, row: int) -> Tensor | Regions:
        """Pixels ``(3, H, W)`` in bytes, or the things as regions."""
        if self.regions:
            return self._things(row)
        return torch.from_numpy(self.pixels(row)).permute(2, 0, 1)

    def _things(self, row: int) -> Regions:
        picture = Image.fromarray(self.pixels(row))
        boxes = np.array([thing.box for thing in self.scenes[row]], dtype=np.float32)
        crops = np.stack(
            [
                np.asarray(
                    picture.resize(
                        (_CROP, _CROP),
                        Image.Resampling.BILINEAR,
                        box=tuple(np.clip(box, 0, 1) * self.image_size),
                    ),
                    dtype=np.float32,
                )
                for box in boxes
            ]
        )
        area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1, keepdims=True)
        features = np.concatenate(
            [(crops.reshape(len(boxes), -1) / 255 - _MEAN) / _STD, boxes, area], axis=1
        )
        return Regions(
            torch.from_numpy(features.astype(np.float32)), torch.from_numpy(boxes.clip(0, 1))
        )


class ShapesDataset(CaptionedImages):
    """Scenes of two to four coloured shapes on textured ground, drawn when asked for.

    Scenes come in pairs of siblings: one scene, and the same with two colours or two places
    swapped. Telling siblings apart needs word order; a bag of words does not do. A sentence may be
    true of several scenes, and :meth:`relevance` knows which.

    Everything follows from ``(seed, split, index)``; a longer dataset starts with the shorter one.
    No scene of one split is in another, whatever the seed.

    Args:
        split: ``train``, ``val`` or ``test``.
        length: number of scenes, for all splits or by split; None: 6,000 / 1,000 / 1,000.
        seed: of the whole world.
        image_size: side of the picture in pixels.
        regions: serve every thing as a region (its crop of 12 × 12 pixels and its box, 437
            numbers, with the box beside them) instead of the picture.
        overlapping: draw the things closer together, so that the boxes of neighbours overlap (most
            by an IoU of 0.2 or more) and things hide part of each other. The sentences are the
            same.
        counts: let every other sentence say how many things there are: "three things, a red …".

    Raises:
        InputError: unknown split, or a length or image size that is not positive.

    Example:
        >>> data = ShapesDataset("val", length=8)
        >>> data.image(0).shape
        torch.Size([3, 64, 64])
        >>> data.captions[0]
        'a small orange circle sits under a small cyan square, with a large red triangle'
        >>> bool(data.relevance(torch.tensor([0]), torch.tensor([0])))
        True
    """

    def __init__(
        self,
        split: str = "train",
        *,
        length: int | Mapping[str, int] | None = None,
        seed: int = 0,
        image_size: int = 64,
        regions: bool = False,
        overlapping: bool = False,
        counts: bool = False,
    ) -> None:
        check_choice("split", split, _SHARES)
        if isinstance(length, Mapping):
            length = length.get(split)
        length = DEFAULT_LENGTH[split] if length is None else length
        check_count(length=length)
        check_count(16, image_size=image_size)
        self.seed, self.image_size, self.regions = seed, image_size, regions
        self.overlapping, self.counts = overlapping, counts
        if counts:
            self.vocabulary = Vocabulary([*RESERVED, *scenes.VOCABULARY, *scenes.COUNT_WORDS])
        self.split = split
        self.scenes = [scene for f in range(-(-length // SIBLINGS)) for scene in self._family(f)][
            :length
        ]
        self._drawn = DrawnScenes(
            split, self.scenes, seed=seed, image_size=image_size, regions=regions
        )
        captions = Captions(
            split,
            names=self._drawn.names,
            sentences=[sentence.text for sentence in self.sentences],
            caption_images=torch.arange(length).repeat_interleave(CAPTIONS_PER_SCENE),
        )
        super().__init__(captions, self._drawn)

    vocabulary = Vocabulary([*RESERVED, *scenes.VOCABULARY])

    @cached_property
    def sentences(self) -> list[scenes.Sentence]:
        """All sentences, five a scene, with what they claim."""
        return [
            sentence
            for row, scene in enumerate(self.scenes)
            for sentence in scenes.sentences(
                scene, CAPTIONS_PER_SCENE, self._rng("say", row), counts=self.counts
            )
        ]

    def _rng(self, purpose: str, index: int) -> np.random.Generator:
        return _rng(self.split, purpose, self.seed, index)

    def _family(self, index: int) -> list[scenes.Scene]:
        rng = self._rng("family", index)
        while True:
            scene = scenes.random_scene(rng)
            if zlib.crc32(scenes.signature(scene)) % 10 in _SHARES[self.split]:
                break
        a, b = rng.permutation(len(scene))[:2].tolist()
        swap = scenes.swap_places if index % 2 else scenes.swap_colours
        members = [scenes.shift_things(member, rng) for member in (scene, swap(scene, a, b))]
        if not self.overlapping:
            return members
        return [scenes.overlap_things(member, rng) for member in members]

    def pixels(self, row: int) -> np.ndarray:
        """The picture of a scene: ``(image_size, image_size, 3)`` uint8."""
        return self._drawn.pixels(row)

    def relevance(self, image_rows: Tensor, caption_rows: Tensor) -> Tensor:
        """Which of these sentences is true of which of these scenes.

        Args:
            image_rows: ``(n,)`` rows of scenes.
            caption_rows: ``(m,)`` rows of captions.

        Returns:
            ``(n, m)`` bool.
        """
        return torch.from_numpy(
            scenes.relevance(
                [self.scenes[i] for i in image_rows.tolist()],
                [self.sentences[j] for j in caption_rows.tolist()],
            )
        )


def _rng(split: str, purpose: str, seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(f"{split} {purpose}".encode()), seed, index])
