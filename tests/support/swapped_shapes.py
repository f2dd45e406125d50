"""Shapes of which some training captions stand at another scene."""

from __future__ import annotations

from typing import Any

import torch

from itmkit.data import ShapesDataset
from itmkit.data.captions import Captions
from itmkit.data.dataset import CaptionedImages


class SwappedShapes(CaptionedImages):
    """Shapes with a share of the training captions dealt to other scenes, of which none is true.

    Args:
        split: ``train``, ``val`` or ``test``; the last two are as they were.
        swapped: share of the captions.
        **options: of :class:`ShapesDataset`.
    """

    vocabulary = ShapesDataset.vocabulary

    def __init__(self, split: str = "train", *, swapped: float = 0.2, **options: Any) -> None:
        shapes = ShapesDataset(split, **options)
        owners = shapes.caption_images.clone()
        count = round(swapped * len(owners)) if split == "train" else 0
        generator = torch.Generator().manual_seed(1)
        chosen = torch.randperm(len(owners), generator=generator)[:count]
        for row in chosen.tolist():
            while shapes.relevance(owners[row : row + 1], torch.tensor([row])).item():
                owners[row] = int(torch.randint(len(shapes), (), generator=generator))
        super().__init__(Captions(split, shapes.names, shapes.captions, owners), shapes.source)
        self.is_swapped = torch.zeros(len(owners), dtype=torch.bool)
        self.is_swapped[chosen] = True
