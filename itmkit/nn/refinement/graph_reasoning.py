"""Similarity graph reasoning (SGR): similarities of a pair speak to each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itmkit.checks import check_count
from itmkit.nn.functional import check_tokens, fill_padding, xavier_linear


class GraphReasoning(nn.Module):
    r"""Pass messages between the similarity vectors of a pair, and read the first one.

    .. math::
        E = \mathrm{softmax}(W_q s\, (W_k s)^\top), \qquad s \leftarrow \mathrm{ReLU}(W_g\, E s)

    for a number of steps; node 0 is the global similarity.

    Diao et al., Similarity Reasoning and Filtration for Image-Text Matching (SGRAF), AAAI 2021.

    Args:
        dim: width S of the similarity vectors.
        steps: how often messages are passed, at least 1.

    Shape:
        - similarities: ``(P, K, S)``, the global one first
        - mask: ``(P, K)`` bool, True on real nodes, or None
        - output: ``(P, S)``

    Raises:
        InputError: a wrong size, or a wrong shape or dtype of an input.

    Example:
        >>> GraphReasoning(8)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 8])
    """

    def __init__(self, dim: int = 256, *, steps: int = 3) -> None:
        super().__init__()
        check_count(dim=dim, steps=steps)
        self.dim = dim
        self.steps = nn.ModuleList(_Step(dim) for _ in range(steps))

    def forward(self, similarities: Tensor, mask: Tensor | None = None) -> Tensor:
        check_tokens("similarities", similarities, self.dim, mask, "mask")
        nodes = fill_padding(similarities, mask)
        *steps, last = self.steps
        for step in steps:
            nodes = fill_padding(step(nodes, nodes, mask), mask)
        first = last(nodes[:, :1], nodes, mask)  # no other node is read
        return fill_padding(first, None if mask is None else mask[:, :1]).squeeze(1)


class _Step(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = xavier_linear(dim, dim)
        self.key = xavier_linear(dim, dim)
        self.out = xavier_linear(dim, dim)

    def forward(self, to: Tensor, nodes: Tensor, mask: Tensor | None) -> Tensor:
        """What ``nodes`` say to some of them."""
        query = self.query(to)
        edges = query @ self.key.weight @ nodes.mT + (query @ self.key.bias).unsqueeze(-1)
        if mask is not None:
            edges = edges.masked_fill(~mask.unsqueeze(1), torch.finfo(edges.dtype).min)
        said: Tensor = self.out(edges.softmax(-1) @ nodes)
        return said.relu()
