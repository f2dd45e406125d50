"""The attention of SCAN and TVRN: weights that compete over the queries, then over the context."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import check_count, check_positive
from itmkit.nn.functional import check_tokens, fill_padding, xavier_linear
from itmkit.precision import at_least_float32
from itmkit.vectors import inverse_norm, l2_normalize


def attention_weights(
    similarity: Tensor,
    query_mask: Tensor | None = None,
    context_mask: Tensor | None = None,
    *,
    smooth: float = 9.0,
) -> Tensor:
    r"""Attention of queries to a context, after SCAN.

    .. math::
        A = \mathrm{LeakyReLU}_{0.1}(S), \qquad
        a_{qc} = \mathrm{softmax}_c\Big(\lambda\, A_{qc} / \textstyle\sqrt{\sum_{q'} A_{q'c}^2}\Big)

    Each context token is first shared out among the queries, so a query's weights depend on all
    queries of its item. Padded queries have no share and padded context has no weight.

    Lee et al., Stacked Cross Attention for Image-Text Matching (SCAN), ECCV 2018.

    Args:
        similarity: products of queries and context.
        query_mask: True on real queries; broadcast against the leading dimensions.
        context_mask: True on real context tokens, likewise.
        smooth: inverse temperature λ of the softmax.

    Shape:
        similarity: ``(..., Q, C)``; query_mask ``(..., Q)``; context_mask ``(..., C)``; result
        ``(..., Q, C)``.

    Returns:
        Weights that sum to one over the context; all zero without real context.

    Example:
        >>> attention_weights(torch.eye(2), smooth=200.0)
        tensor([[1., 0.],
                [0., 1.]])
    """
    shares = F.leaky_relu(similarity, 0.1)
    if query_mask is not None:
        shares = shares.masked_fill(~query_mask.unsqueeze(-1), 0)
    # torch's norm is slow over this dimension
    squares = at_least_float32(shares).square().sum(-2, keepdim=True)
    logits = shares * (smooth * inverse_norm(squares)).to(shares.dtype)
    if context_mask is None:
        return logits.softmax(dim=-1)
    real = context_mask.unsqueeze(-2)
    return logits.masked_fill(~real, torch.finfo(logits.dtype).min).softmax(dim=-1) * real


class ScanAttention(nn.Module):
    r"""What queries find in a context: :func:`attention_weights` of projected tokens.

    .. math::
        S = W_q q \cdot W_k c, \qquad \mathrm{attend}(q, c) = \mathrm{l2}\Big(\sum_c a_{qc}\, c\Big)

    TVRN has one such attention for regions among themselves, words among themselves, and words to
    the image.

    Args:
        dim: width D of the tokens.
        smooth: inverse temperature λ of the softmax, above 0.

    Shape:
        - query: ``(B, Q, D)``, context: ``(B, C, D)``
        - query_mask, context_mask: ``(B, Q)`` and ``(B, C)`` bool, True on real tokens, or None
        - output: ``(B, Q, D)`` unit vectors; zero without real context

    Raises:
        InputError: a wrong size, or a wrong shape or dtype of an input.

    Example:
        >>> x = torch.randn(2, 3, 8)
        >>> ScanAttention(8)(x, x).norm(dim=-1).allclose(torch.ones(2, 3))
        True
    """

    def __init__(self, dim: int, *, smooth: float = 9.0) -> None:
        super().__init__()
        check_count(dim=dim)
        check_positive(smooth=smooth)
        self.dim = dim
        self.smooth = smooth
        self.query = xavier_linear(dim, dim)
        self.key = xavier_linear(dim, dim)

    def extra_repr(self) -> str:
        return f"smooth={self.smooth}"

    def forward(
        self,
        query: Tensor,
        context: Tensor,
        query_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        check_tokens("query", query, self.dim, query_mask, "query_mask")
        check_tokens("context", context, self.dim, context_mask, "context_mask")
        context = fill_padding(context, context_mask)
        similarity = self.query(fill_padding(query, query_mask)) @ self.key(context).mT
        weights = attention_weights(similarity, query_mask, context_mask, smooth=self.smooth)
        return fill_padding(l2_normalize(weights @ context), query_mask)
