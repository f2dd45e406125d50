"""Three pairs of an image and a caption, for the fusion encoders."""

from __future__ import annotations

import torch
from torch import Tensor

Pairs = tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor | None]


def pairs(dtype: torch.dtype = torch.float32) -> Pairs:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    image_mask = torch.arange(5) < torch.tensor([5, 3, 0])[:, None]
    text_mask = torch.arange(6) < torch.tensor([2, 6, 4])[:, None]
    return draw(3, 8), draw(3, 5, 8), image_mask, draw(3, 8), draw(3, 6, 8), text_mask


def rows(inputs: Pairs, index: slice) -> Pairs:
    return tuple(None if x is None else x[index] for x in inputs)  # type: ignore[return-value]
