"""Generalised pooling (GPO) of VSE∞."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class GeneralisedPooling(nn.Module):
    r"""A weighted sum of the sorted values of every channel; the weights are learnt by position.

    .. math:: v_d = \sum_k \theta_k\, \mathrm{sort}_n(x_{nd})_k

    The weights θ of N positions come from a BiGRU over position encodings and a softmax. All equal,
    they are the mean; all on the first position, the maximum.

    Chen et al., Learning the Best Pooling Strategy for Visual Semantic Embedding, CVPR 2021.

    Args:
        encoding_dim: width of the position encodings.
        hidden_dim: width of the GRU.

    Shape:
        tokens ``(B, N, D)``, mask bool ``(B, N)`` or None → ``(B, D)``.
    """

    def __init__(self, encoding_dim: int = 32, hidden_dim: int = 32) -> None:
        super().__init__()
        self.encoding_dim = encoding_dim
        self.gru = nn.GRU(encoding_dim, hidden_dim, batch_first=True, bidirectional=True)
        self.logit = nn.Linear(hidden_dim, 1, bias=False)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        count = tokens.shape[1]
        if mask is None:
            mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        lengths, item = mask.sum(1).clamp(min=1).unique(return_inverse=True)
        weights = tokens.new_zeros(len(lengths), count)
        for row, length in enumerate(lengths.tolist()):  # each number of tokens once
            states = self.gru(self._encoding(length).to(tokens))[0][0]
            logits = self.logit(states.unflatten(-1, (2, -1)).mean(-2))[:, 0]
            weights[row, :length] = logits.softmax(0)
        smallest = torch.finfo(tokens.dtype).min
        ordered = tokens.masked_fill(~mask[..., None], smallest).sort(1, descending=True).values
        real_first = torch.arange(count, device=mask.device) < mask.sum(1, keepdim=True)
        return (weights[item][..., None] * ordered.masked_fill(~real_first[..., None], 0)).sum(1)

    def _encoding(self, length: int) -> Tensor:
        """Sines and cosines ``(1, length, encoding_dim)`` of the positions."""
        rates = torch.exp(
            torch.arange(0, self.encoding_dim, 2) * (-math.log(10_000) / self.encoding_dim)
        )
        angles = torch.arange(length)[:, None] * rates
        return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[None]
