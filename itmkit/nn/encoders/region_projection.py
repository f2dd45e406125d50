"""Region or grid features to tokens of the joint width."""

from __future__ import annotations

from torch import Tensor, nn

from itmkit.checks import check_count
from itmkit.nn.contract import Tokens
from itmkit.nn.functional import check_tokens, fill_padding, xavier_linear
from itmkit.nn.layers.masked_batch_norm import MaskedBatchNorm
from itmkit.nn.layers.token_dropout import TokenDropout


class RegionProjection(nn.Module):
    r"""Project precomputed image features: a Linear plus a small MLP.

    .. math::
        f = W x + b + W_2\,\mathrm{relu}(\mathrm{BN}(W_1 x + b_1)) + b_2

    As in VSE∞, ESA and MATE. Batch normalisation runs over the real tokens of the batch only.
    Weights start Xavier-uniform, biases at zero.

    Args:
        in_dim: width of the features.
        dim: width D of the tokens.
        hidden_dim: width of the MLP in between.
        dropout: probability in [0, 1) that a channel of the input is zeroed in training.
        shared_dropout: whether all regions of an image lose the same channels, which regularises
            more where they are pooled.

    Shape:
        - features: ``(B, N, in_dim)``
        - mask: ``(B, N)`` bool, True on real regions, or None
        - output: tokens ``(B, N, D)``, zero on padding, and ``mask`` as given

    Raises:
        InputError: a wrong size, or a wrong shape or dtype of ``features`` or ``mask``.

    Example:
        >>> import torch
        >>> tokens, mask = RegionProjection(16, 8, hidden_dim=4)(torch.randn(2, 5, 16))
        >>> tokens.shape, mask is None
        (torch.Size([2, 5, 8]), True)
    """

    def __init__(
        self,
        in_dim: int = 2048,
        dim: int = 1024,
        *,
        hidden_dim: int = 512,
        dropout: float = 0.0,
        shared_dropout: bool = False,
    ) -> None:
        super().__init__()
        check_count(in_dim=in_dim, dim=dim, hidden_dim=hidden_dim)
        self.in_dim = in_dim
        self.dim = dim
        self.dropout = TokenDropout(dropout, shared=shared_dropout)
        self.linear = xavier_linear(in_dim, dim)
        self.hidden = xavier_linear(in_dim, hidden_dim)
        self.norm = MaskedBatchNorm(hidden_dim)
        self.out = xavier_linear(hidden_dim, dim)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tokens:
        check_tokens("features", features, self.in_dim, mask, "mask")
        x = fill_padding(self.dropout(features), mask)
        tokens = self.linear(x) + self.out(self.norm(self.hidden(x), mask).relu())
        return Tokens(fill_padding(tokens, mask), mask)
