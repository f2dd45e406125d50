"""Dropout of the channels of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import check_dropout


class TokenDropout(nn.Module):
    """Zero channels of tokens in training: of each token by itself, or of all of an item alike.

    Where tokens are pooled, what one of them loses another one still shows, so that dropout of each
    by itself hardly regularises. ``shared`` leaves an item without the channel.

    Args:
        p: probability in [0, 1) that a channel is zeroed.
        shared: whether all tokens of an item lose the same channels.

    Shape:
        tokens ``(B, N, D)`` → ``(B, N, D)``

    Raises:
        InputError: for a probability out of its range.
    """

    def __init__(self, p: float = 0.0, *, shared: bool = False) -> None:
        super().__init__()
        check_dropout(dropout=p)
        self.p = p
        self.shared = shared

    def forward(self, tokens: Tensor) -> Tensor:
        if not self.shared:
            return F.dropout(tokens, self.p, self.training)
        return F.dropout1d(tokens.mT, self.p, self.training).mT

    def extra_repr(self) -> str:
        return f"p={self.p}, shared={self.shared}"


def kept_tokens(tokens: Tensor, mask: Tensor | None, drop: float) -> Tensor:
    """Which real tokens of ``(B, L, D)`` are kept ``(B, L)``, at random; one always is."""
    drawn = torch.rand(tokens.shape[:2], device=tokens.device)
    if mask is not None:
        drawn = drawn.masked_fill(~mask, -1.0)
    last = torch.arange(drawn.shape[1], device=drawn.device) == drawn.argmax(1, keepdim=True)
    return ((drawn >= drop) | last) & (drawn >= 0)
