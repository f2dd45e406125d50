"""The built-in dataset as regions that are related; as it is, its things do not overlap."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from itmkit.data import ShapesDataset
from itmkit.data.images import Regions


class RelatedShapes(ShapesDataset):
    """Things of a scene that have the more to do with each other the nearer they are.

    Args:
        split: ``train``, ``val`` or ``test``.
        length: number of scenes.
        four: fill up to four regions, with the first ones again.
    """

    def __init__(
        self, split: str, *, length: int | Mapping[str, int] | None = None, four: bool = False
    ) -> None:
        super().__init__(split, length=length, image_size=32, regions=True)
        self.four = four

    def image(self, row: int) -> Regions:
        regions = super().image(row)
        assert isinstance(regions, Regions)
        features, boxes = regions.features, regions.boxes
        assert boxes is not None
        if self.four:
            rows = torch.arange(4) % len(features)
            features, boxes = features[rows], boxes[rows]
        centres = boxes.unflatten(1, (2, 2)).mean(1)
        distances = (centres[:, None] - centres).norm(dim=2)
        return Regions(features, boxes, (-2 * distances).exp())
