"""Cross-attention scores one caption at a time, in two ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def published_loop(image: Tensor, captions: list[Tensor], direction: str, smooth: float) -> Tensor:
    """Scores ``(n, m)`` of images ``(n, N, D)`` and ``m`` captions ``(L_j, D)``.

    After SCAN and its successors, with their repeated captions, transposed copies and contexts.
    """
    columns = []
    for words in captions:
        text = words.unsqueeze(0).repeat(len(image), 1, 1)
        query, context = (text, image) if direction == "t2i" else (image, text)
        b, length, _ = query.shape
        attention = torch.bmm(context, query.transpose(1, 2))  # (n, context, query)
        attention = F.leaky_relu(attention, 0.1)
        attention = attention / (attention.pow(2).sum(dim=2, keepdim=True).sqrt() + 1e-8)
        attention = attention.transpose(1, 2).contiguous().view(b * length, -1)
        attention = F.softmax(attention * smooth, dim=1).view(b, length, -1)
        attention = attention.transpose(1, 2).contiguous()
        found = torch.bmm(context.transpose(1, 2), attention).transpose(1, 2)
        product = torch.sum(query * found, dim=2)
        norms = torch.norm(query, 2, dim=2) * torch.norm(found, 2, dim=2)
        columns.append((product / norms.clamp(min=1e-8)).mean(dim=1, keepdim=True))
    return torch.cat(columns, dim=1)


def lean_loop(image: Tensor, captions: list[Tensor], direction: str, smooth: float) -> Tensor:
    """The same without a copy that can be saved: the best that a loop over captions does here."""
    columns = []
    for words in captions:
        text = words.expand(len(image), -1, -1)
        query, context = (text, image) if direction == "t2i" else (image, text)
        attention = F.leaky_relu(context @ query.mT, 0.1)
        attention = F.normalize(attention, dim=2, eps=1e-8)
        found = torch.softmax(smooth * attention.mT, dim=2) @ context
        columns.append(F.cosine_similarity(query, found, dim=2).mean(1))
    return torch.stack(columns, dim=1)
