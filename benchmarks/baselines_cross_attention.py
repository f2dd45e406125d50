"""Cross-attention scores as published code computes them: a loop over the captions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def caption_loop(image: Tensor, captions: list[Tensor], direction: str, smooth: float) -> Tensor:
    """Scores ``(n, m)`` of images ``(n, N, D)`` and ``m`` captions ``(L_j, D)``, SCAN's formulas."""
    columns = []
    for words in captions:
        text = words.expand(len(image), -1, -1)
        query, context = (text, image) if direction == "t2i" else (image, text)
        attention = F.leaky_relu(context @ query.mT, 0.1)  # (n, context, query)
        attention = attention / (attention.pow(2).sum(2, keepdim=True).sqrt() + 1e-8)
        weights = torch.softmax(smooth * attention.mT.contiguous(), dim=2)
        found = weights @ context
        cosine = (query * found).sum(2) / (query.norm(dim=2) * found.norm(dim=2)).clamp(min=1e-8)
        columns.append(cosine.mean(1))
    return torch.stack(columns, dim=1)
