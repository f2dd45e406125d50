"""A GRU over a sequence of two parts, refined tokens out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.nn.functional import check_tokens, fill_padding, l2_normalize


class TwoPartGRU(nn.Module):
    r"""Tokens refined by a GRU that reads them, and then what was made of them.

    .. math:: x' = \mathrm{l2}\big(\mathrm{GRU}([x; y]) + [x; x]\big)

    The second part goes on from the last real token of the first. The parts can be run on their
    own (:meth:`first`, :meth:`second`): where many ``y`` follow one ``x``, the first runs once.

    Args:
        dim: width D of the tokens, and of the GRU.

    Shape:
        - first, second: ``(B, N, D)``
        - mask: ``(B, N)`` bool, True on real tokens (of both parts), or None
        - output: tokens ``(B, 2N, D)``, zero on padding, and their mask ``(B, 2N)`` or None

    Raises:
        ValueError: a wrong size, or a wrong shape or dtype of an input.

    Example:
        >>> gru = TwoPartGRU(4)
        >>> tokens, mask = gru(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
        >>> tokens.shape, mask is None
        (torch.Size([2, 6, 4]), True)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        self.dim = dim
        self.gru = nn.GRU(dim, dim, batch_first=True)

    def forward(
        self, first: Tensor, second: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        check_tokens("first", first, self.dim, mask, "mask")
        if second.shape != first.shape:
            raise ValueError(
                f"second must have the shape of first {tuple(first.shape)}, "
                f"got {tuple(second.shape)}"
            )
        first, second = fill_padding(first, mask), fill_padding(second, mask)
        tokens, state = self.first(first, mask)
        others = self.second(self.gates(second), state, first, mask)
        both = None if mask is None else torch.cat([mask, mask], dim=-1)
        return torch.cat([tokens, others], dim=-2), both

    def first(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first part refined ``(B, N, D)``, and the state ``(B, D)`` after its last token."""
        tokens = fill_padding(tokens, mask)
        out, _ = self.gru(tokens)
        refined = l2_normalize(out + tokens)
        if mask is None:
            return refined, out[:, -1]
        order = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        length = (mask * order).amax(1)  # up to the last real token
        last = (length - 1).clamp_min(0)[:, None, None].expand(-1, 1, out.shape[-1])
        state = out.gather(1, last).squeeze(1) * (length > 0).unsqueeze(1)
        return fill_padding(refined, mask), state

    def gates(self, tokens: Tensor) -> Tensor:
        """What tokens ``(..., D)`` put into the gates, ``(..., 3D)``: linear, without the bias."""
        return F.linear(tokens, self.gru.all_weights[0][0])

    def second(
        self, gates: Tensor, state: Tensor, residual: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """The second part refined.

        Args:
            gates: ``(..., N, 3D)`` of :meth:`gates`.
            state: ``(..., D)`` after the first part.
            residual: ``(..., N, D)`` the tokens of the first part.
            mask: ``(..., N)`` bool, or None.

        Returns:
            ``(..., N, D)``, zero on padding.
        """
        _, weight, input_bias, bias = self.gru.all_weights[0]
        steps = []
        for gate in (gates + input_bias).unbind(-2):
            hidden = F.linear(state, weight, bias)
            reset, update, new = gate.chunk(3, -1)
            hidden_reset, hidden_update, hidden_new = hidden.chunk(3, -1)
            reset = (reset + hidden_reset).sigmoid()
            update = (update + hidden_update).sigmoid()
            new = (new + reset * hidden_new).tanh()
            state = new + update * (state - new)
            steps.append(state)
        return fill_padding(l2_normalize(torch.stack(steps, dim=-2) + residual), mask)
