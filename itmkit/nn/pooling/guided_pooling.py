"""Pooling of tokens that is guided by their mean."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, check_choice, check_count, check_dropout, check_optional_count
from itmkit.nn.functional import check_tokens, fill_padding, xavier_linear
from itmkit.nn.layers.masked_batch_norm import MaskedBatchNorm
from itmkit.vectors import l2_normalize

Norm = Literal["none", "batch", "layer"]


class GuidedPooling(nn.Module):
    r"""Pool tokens by their agreement with their mean.

    .. math::
        w_n = u \cdot \big(\tanh(W_l x_n) \odot \tanh(W_g \bar{x})\big), \qquad
        v = \mathrm{l2}\Big(\sum_n \mathrm{softmax}_n(w)\, x_n\Big)

    From SGRAF and TVRN. There the image side has a BatchNorm before each tanh, the one of the
    tokens with a channel for every *position*: ``norm="batch"``, for a fixed number of tokens.
    ``"layer"`` normalises each token by itself and allows any number of them.

    Args:
        dim: width D of the tokens.
        norm: ``none``, ``batch`` or ``layer`` normalisation before the tanh.
        num_tokens: how many tokens an item has; with ``norm="batch"``, and only there.
        dropout: dropout after the tanh, in [0, 1).

    Shape:
        - tokens: ``(B, N, D)``
        - mask: ``(B, N)`` bool, True on real tokens, or None
        - output: ``(B, D)`` unit vectors; zero for an item without a real token

    Raises:
        InputError: a wrong size or choice, a wrong shape or dtype of an input, or with
            ``norm="batch"`` another number of tokens, or a mask.

    Example:
        >>> GuidedPooling(8, norm="layer")(torch.randn(2, 5, 8)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        norm: Norm = "none",
        num_tokens: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_count(dim=dim)
        check_choice("norm", norm, Norm)
        if (norm == "batch") != (num_tokens is not None):
            expected = "a number" if norm == "batch" else "None"
            raise InputError(f"num_tokens is {num_tokens}; expected {expected} for norm={norm!r}")
        check_optional_count(num_tokens=num_tokens)
        check_dropout(dropout=dropout)
        self.dim = dim
        self.num_tokens = num_tokens
        self.local = xavier_linear(dim, dim)
        self.guide = xavier_linear(dim, dim)
        self.weight = xavier_linear(dim, 1)
        self.local_norm: nn.Module = nn.Identity()
        self.guide_norm: nn.Module = nn.Identity()
        if num_tokens is not None:
            self.local_norm, self.guide_norm = MaskedBatchNorm(num_tokens), MaskedBatchNorm(dim)
        elif norm == "layer":
            self.local_norm, self.guide_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        check_tokens("tokens", tokens, self.dim, mask, "mask")
        if self.num_tokens is not None and (tokens.shape[1] != self.num_tokens or mask is not None):
            raise InputError(
                f"tokens has {tokens.shape[1]} tokens an item{' and a mask' * (mask is not None)}; "
                f'expected {self.num_tokens} and none padded for norm="batch" (norm="layer" takes '
                "any)"
            )
        tokens = fill_padding(tokens, mask)
        return self.pool(tokens, self.gate(tokens), mask)

    def gate(self, tokens: Tensor) -> Tensor:
        """The first factor of the weights, ``(..., N, D)``, of each token by itself."""
        local: Tensor = self.local(tokens)
        if self.num_tokens is not None:  # a channel for every position
            local = self.local_norm(local.mT).mT
        else:
            local = self.local_norm(local)
        gate: Tensor = self.dropout(local.tanh())
        return gate

    def pool(self, tokens: Tensor, gate: Tensor, mask: Tensor | None = None) -> Tensor:
        """Pool tokens ``(..., N, D)``, zero on padding, whose :meth:`gate` is known."""
        guide = self.dropout(self.guide_norm(self.guide(_mean(tokens, mask))).tanh())
        # u · (gate ⊙ guide), without the product of every token
        logits = (gate @ (self.weight.weight[0] * guide).unsqueeze(-1)).squeeze(-1)
        logits = logits + self.weight.bias
        if mask is not None:
            logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
        return l2_normalize((logits.softmax(-1).unsqueeze(-2) @ tokens).squeeze(-2))


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return tokens.mean(-2)
    return tokens.sum(-2) / mask.sum(-1, keepdim=True).clamp_min(1)
