"""The transformer layer of the fusion encoders."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from itmkit.nn.functional import xavier_linear


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``(P, N, H · D)`` as ``(P, H, N, D)``."""
    return rearrange(x, "p n (h d) -> p h n d", h=num_heads)


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer, which may compute its first positions alone.

    Query, key and value start as those of :class:`torch.nn.MultiheadAttention`, Xavier-uniform as
    one matrix.

    Args:
        dim: width D, a multiple of ``num_heads``.
        num_heads: attention heads.
        dropout: on both branches.
        hidden_dim: width of the MLP.
        attention_dropout: on the attention weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        dropout: float,
        hidden_dim: int,
        *,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_dropout = attention_dropout
        self.dropout = nn.Dropout(dropout)
        self.norm_attention = nn.LayerNorm(dim)
        self.query = xavier_linear(dim, dim)
        self.key_value = xavier_linear(dim, 2 * dim)
        for linear in (self.query, self.key_value):
            bound = math.sqrt(6 / (4 * dim))
            nn.init.uniform_(linear.weight, -bound, bound)
        self.out = xavier_linear(dim, dim)
        self.norm_mlp = nn.LayerNorm(dim)
        self.hidden = xavier_linear(dim, hidden_dim)
        self.mlp_out = xavier_linear(hidden_dim, dim)

    def attention(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Attention ``(P, S, S)`` of all positions, the mean over the heads, fp32."""
        y = self.norm_attention(x)
        key, _ = self.key_value(y).chunk(2, dim=-1)
        query, key = (split_heads(part, self.num_heads) for part in (self.query(y), key))
        logits = (query @ key.mT).float() / math.sqrt(query.shape[-1])
        if real is not None:
            logits = logits.masked_fill(~real[:, None, None, :], torch.finfo(logits.dtype).min)
        return logits.softmax(-1).mean(1)

    def forward(self, x: Tensor, real: Tensor | None, num_queries: int | None = None) -> Tensor:
        """The first ``num_queries`` positions of ``x`` ``(P, S, D)``, or all of them.

        Args:
            x: the sequence.
            real: ``(P, S)``, True where it is no padding; None: everywhere.
            num_queries: how many are computed; they attend to all.
        """
        y = self.norm_attention(x)
        x = x[:, :num_queries]
        parts = self.query(y[:, :num_queries]), *self.key_value(y).chunk(2, dim=-1)
        query, key, value = (split_heads(part, self.num_heads) for part in parts)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=None if real is None else real[:, None, None, :],
            dropout_p=self.attention_dropout if self.training else 0.0,
        )
        x = x + self.dropout(self.out(rearrange(attended, "p h n d -> p n (h d)")))
        hidden = F.gelu(self.hidden(self.norm_mlp(x)))
        change: Tensor = self.dropout(self.mlp_out(self.dropout(hidden)))
        return x + change
