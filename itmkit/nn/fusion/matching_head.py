"""A binary matching head on the read-outs of the fusion encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import check_count, check_shape
from itmkit.nn.layers.linear import Linear


class MatchingHead(nn.Module):
    """Binary logit of a pair: do this image and this text belong together?

    An MLP over the two read-outs of a :class:`FusionEncoder` and their product; an alternative to
    the cosine of the read-outs.

    Args:
        dim: width D of the read-outs.

    Shape:
        - image_out, text_out: ``(P, D)``
        - output: ``(P,)`` logits, above zero for "yes"

    Example:
        >>> MatchingHead(16)(torch.randn(3, 16), torch.randn(3, 16)).shape
        torch.Size([3])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_count(dim=dim)
        self.dim = dim
        self.hidden = Linear(3 * dim, dim)
        self.logit = Linear(dim, 1)

    def forward(self, image_out: Tensor, text_out: Tensor) -> Tensor:
        check_shape((image_out.shape[0], self.dim), image_out=image_out, text_out=text_out)
        both = torch.cat([image_out, text_out, image_out * text_out], dim=-1)
        logits: Tensor = self.logit(F.gelu(self.hidden(both)))
        return logits.squeeze(-1)
