"""Feature discriminability: tokens of one sample pushed apart."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import check_non_negative, check_positive
from itmkit.nn.functional import check_tokens, fill_padding
from itmkit.vectors import l2_normalize


class FeatureDiscriminability(nn.Module):
    r"""Take from every token a part of the mean of the tokens that resemble it (ContraNorm).

    .. math::
        y = (1 + s)\,x - s\,\mathrm{softmax}(\hat{x} \hat{x}^\top / t)\,x

    The softmax runs over the real tokens of one sample. The N × N matrix is never stored where
    PyTorch has a fused attention for the device. There are no parameters.

    The feature discriminability of DAIM, from "ContraNorm". Differs from the released code: padded
    tokens are left out of the softmax.

    Args:
        scale: how far tokens are pushed apart, s, at least 0; 0 changes nothing.
        temperature: temperature t of the softmax, above 0.

    Shape:
        - x: ``(B, N, D)``
        - mask: ``(B, N)`` bool, True on real tokens, or None
        - output: ``(B, N, D)``, zero on padding

    Raises:
        InputError: scale or temperature out of range, a wrong shape or dtype of ``x`` or ``mask``.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> FeatureDiscriminability(scale=0.5)(x)
        tensor([[[ 1.1345, -0.1345],
                 [-0.1345,  1.1345]]])
    """

    def __init__(self, scale: float = 0.1, temperature: float = 1.0) -> None:
        super().__init__()
        check_non_negative(scale=scale)
        check_positive(temperature=temperature)
        self.scale = scale
        self.temperature = temperature

    def extra_repr(self) -> str:
        return f"scale={self.scale}, temperature={self.temperature}"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        check_tokens("x", x, x.shape[-1] if x.ndim else 0, mask, "mask")
        x = fill_padding(x, mask)
        attended = None
        if mask is not None:
            attended = mask | ~mask.any(dim=1, keepdim=True)  # no token at all: a mean of zeros
            attended = attended[:, None, None, :]
        unit = l2_normalize(x).unsqueeze(1)  # (B, 1, N, D): one head
        mean = F.scaled_dot_product_attention(
            unit, unit, x.unsqueeze(1), attn_mask=attended, scale=1 / self.temperature
        ).squeeze(1)
        return fill_padding((1 + self.scale) * x - self.scale * mean, mask)
