"""Similarity attention filtration (SAF): weigh the similarities of a pair."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itmkit.checks import check_count
from itmkit.nn.functional import check_tokens, fill_padding, xavier_linear
from itmkit.nn.layers.masked_batch_norm import MaskedBatchNorm
from itmkit.vectors import l2_normalize


class AttentionFiltration(nn.Module):
    r"""Average the similarity vectors of a pair by how much each of them says.

    .. math::
        \beta_k = \frac{\sigma(\mathrm{BN}(w \cdot s_k))}{\sum_j \sigma(\mathrm{BN}(w \cdot s_j))},
        \qquad v = \mathrm{l2}\Big(\sum_k \beta_k s_k\Big)

    The batch normalisation is over all similarities of all pairs of the global batch: in training
    hand all pairs over in one call.

    Diao et al., Similarity Reasoning and Filtration for Image-Text Matching (SGRAF), AAAI 2021.

    Args:
        dim: width S of the similarity vectors.

    Shape:
        - similarities: ``(P, K, S)``
        - mask: ``(P, K)`` bool, True on real ones, or None
        - output: ``(P, S)`` unit vectors; zero for a pair without a real one

    Raises:
        InputError: a wrong size, or a wrong shape or dtype of an input.

    Example:
        >>> AttentionFiltration(8)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 8])
    """

    def __init__(self, dim: int = 256) -> None:
        super().__init__()
        check_count(dim=dim)
        self.dim = dim
        self.weight = xavier_linear(dim, 1)
        self.norm = MaskedBatchNorm(1)

    def forward(self, similarities: Tensor, mask: Tensor | None = None) -> Tensor:
        check_tokens("similarities", similarities, self.dim, mask, "mask")
        similarities = fill_padding(similarities, mask)
        gates = fill_padding(self.norm(self.weight(similarities), mask).sigmoid(), mask)
        total = gates.sum(1, keepdim=True)
        weights = gates / total.where(total > 0, torch.ones_like(total))
        return l2_normalize((weights.mT @ similarities).squeeze(1))
