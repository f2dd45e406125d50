"""Focal attention: leave out the context that a query has little to do with."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from itmkit.checks import InputError, check_choice, type_of

Focal = Literal["none", "equal", "prob", "global"]


def focal_attention(
    weights: Tensor,
    focal: Focal = "none",
    *,
    context_mask: Tensor | None = None,
    relevance: Tensor | None = None,
) -> Tensor:
    r"""Attention weights, refocused and again of sum one.

    .. math::
        \text{equal:}\quad & \textstyle\sum_k (a_c - a_k) > 0 \\
        \text{prob:}\quad & \textstyle\sum_k (a_c - a_k) \sqrt{a_k} > 0 \\
        \text{global:}\quad & a_c \leftarrow a_c\, r_c / \textstyle\sum_k a_k r_k

    ``equal`` and ``prob`` keep the context tokens for which the line is true; where none is (all
    weights alike) all are kept. ``global`` weighs the context by its relevance, its softmax
    similarity to the global image vector; the formula is ours. Differs from the released code: its
    ``glo``, the default there, takes that softmax over a dimension of one element and so equals
    ``none``.

    Liu et al., Focus Your Attention: A Bidirectional Focal Attention Network (BFAN), ACM MM 2019,
    for ``equal`` and ``prob``; TVRN uses all.

    Args:
        weights: non-negative, of sum one over the last dimension (or zero throughout).
        focal: which; ``none`` returns the weights as they are.
        context_mask: True on real context tokens; broadcast against the leading dimensions.
        relevance: of the context tokens, non-negative, likewise; for ``global``, and only there.

    Shape:
        weights: ``(..., Q, C)``; context_mask, relevance ``(..., C)``; result ``(..., Q, C)``.

    Raises:
        InputError: an unknown ``focal``, or a ``relevance`` that does not go with it.

    Example:
        >>> import torch
        >>> focal_attention(torch.tensor([[0.5, 0.3, 0.2]]), "equal")
        tensor([[1., 0., 0.]])
    """
    check_focal(focal)
    if (focal == "global") != (relevance is not None):
        expected = "a tensor" if relevance is None else "None"
        raise InputError(
            f"relevance is {type_of(relevance)}; expected {expected} for focal={focal!r}"
        )
    if focal == "none":
        return weights
    if relevance is not None:
        kept = weights * relevance.unsqueeze(-2)
    else:
        if focal == "equal":
            real = torch.ones_like(weights) if context_mask is None else context_mask.unsqueeze(-2)
            above = weights * real.sum(-1, keepdim=True) - weights.sum(-1, keepdim=True)
        else:
            root = weights.sqrt()
            above = weights * root.sum(-1, keepdim=True) - (weights * root).sum(-1, keepdim=True)
        keep = above.detach() > 0
        kept = weights * (keep | ~keep.any(-1, keepdim=True))
    total = kept.sum(-1, keepdim=True)
    return kept / total.where(total > 0, 1)


def check_focal(focal: str) -> None:
    """Raise unless ``focal`` names a known choice."""
    check_choice("focal", focal, Focal)
