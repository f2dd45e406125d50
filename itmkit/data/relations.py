"""How the boxes of an image relate to each other."""

from __future__ import annotations

import torch
from torch import Tensor

from itmkit.checks import InputError


def box_relations(boxes: Tensor, threshold: float | None = 0.2) -> Tensor:
    r"""Overlap of every two boxes of an image, as intersection over union.

    .. math::
        R_{ij} = [\mathrm{IoU}(b_i, b_j) \ge t], \qquad
        \mathrm{IoU}(b_i, b_j) = \frac{|b_i \cap b_j|}{|b_i \cup b_j|}

    A box without area overlaps no other; every box overlaps itself in full, with or without area.

    From TVRN, which binarises at 0.2 or 0.5.

    Args:
        boxes: corners x1, y1, x2, y2 with x1 ≤ x2 and y1 ≤ y2, of any scale.
        threshold: t, in (0, 1]; an IoU of exactly t counts. None for the IoU itself.

    Shape:
        - boxes: ``(..., N, 4)``
        - output: ``(..., N, N)``, symmetric, 1 on the diagonal

    Returns:
        Relations as float32, 0 or 1; in [0, 1] where ``threshold`` is None.

    Raises:
        InputError: if ``boxes`` or ``threshold`` is not as above, or a corner is not finite.

    Example:
        >>> boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 1], [1, 1, 3, 3]])
        >>> box_relations(boxes, None)
        tensor([[1.0000, 0.5000, 0.1429],
                [0.5000, 1.0000, 0.0000],
                [0.1429, 0.0000, 1.0000]])
        >>> box_relations(boxes, 0.2).tolist()
        [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    if threshold is not None and not 0 < threshold <= 1:
        raise InputError(f"threshold is {threshold}; expected a number in (0, 1], or None")
    if boxes.ndim < 2 or boxes.shape[-1] != 4:
        raise InputError(f"boxes have the shape {tuple(boxes.shape)}; expected (..., N, 4)")
    corners = boxes.double()  # areas of any float32 corners are finite
    low, high = corners[..., :2], corners[..., 2:]
    if not bool(corners.isfinite().all() & (low <= high).all()):
        raise InputError(
            "boxes have a corner that is not finite, or a box with x2 < x1 or y2 < y1; "
            "expected x1, y1, x2, y2"
        )
    area = (high - low).prod(-1)
    common_low = torch.maximum(low[..., :, None, :], low[..., None, :, :])
    common_high = torch.minimum(high[..., :, None, :], high[..., None, :, :])
    common = (common_high - common_low).clamp(min=0).prod(-1)
    union = area[..., :, None] + area[..., None, :] - common
    relations = torch.where(union > 0, common / union, 0.0).clamp(max=1)
    relations.diagonal(dim1=-2, dim2=-1).fill_(1)
    return (relations if threshold is None else relations >= threshold).float()
