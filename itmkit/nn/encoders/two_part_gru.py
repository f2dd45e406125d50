"""A GRU over a sequence of two parts, refined tokens out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itmkit.checks import check_count, check_shape
from itmkit.nn.functional import check_tokens, fill_padding
from itmkit.nn.layers.gru import gru_states
from itmkit.nn.layers.linear import Linear, linear
from itmkit.vectors import l2_normalize


class TwoPartGRU(nn.Module):
    r"""Tokens refined by a GRU that reads them, and then what was made of them.

    .. math:: x' = \mathrm{l2}\big(\mathrm{GRU}([x; y]) + [x; x]\big)

    The second part continues from the last real token of the first. The parts can be run on their
    own (:meth:`first`, :meth:`second`): where many ``y`` follow one ``x``, the first runs once.

    Args:
        dim: width D of the tokens, and of the GRU.

    Shape:
        - first, second: ``(B, N, D)``
        - mask: ``(B, N)`` bool, True on real tokens (of both parts), or None
        - output: tokens ``(B, 2N, D)``, zero on padding, and their mask ``(B, 2N)`` or None

    Raises:
        InputError: a wrong size, or a wrong shape or dtype of an input.

    Example:
        >>> gru = TwoPartGRU(4)
        >>> tokens, mask = gru(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
        >>> tokens.shape, mask is None
        (torch.Size([2, 6, 4]), True)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        check_count(dim=dim)
        self.dim = dim
        self.input = Linear(dim, 3 * dim)  # reset, update and new gate, as in nn.GRU
        self.hidden = Linear(dim, 3 * dim)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5)

    def forward(
        self, first: Tensor, second: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        check_tokens("first", first, self.dim, mask, "mask")
        check_shape(tuple(first.shape), second=second)
        first, second = fill_padding(first, mask), fill_padding(second, mask)
        tokens, state = self.first(first, mask)
        others = self.second(self.gates(second), state, first, mask)
        both = None if mask is None else torch.cat([mask, mask], dim=-1)
        return torch.cat([tokens, others], dim=-2), both

    def first(self, tokens: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The first part refined ``(B, N, D)``, and the state ``(B, D)`` after its last token."""
        tokens = fill_padding(tokens, mask)
        states = self._steps(self.gates(tokens), tokens.new_zeros(tokens.shape[0], self.dim))
        refined = self._refined(states, tokens, mask)
        if mask is None:
            return refined, states[:, -1]
        order = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        length = (mask * order).amax(1)  # up to the last real token
        last = (length - 1).clamp_min(0)[:, None, None].expand(-1, 1, states.shape[-1])
        state = states.gather(1, last).squeeze(1) * (length > 0).unsqueeze(1)
        return refined, state

    def gates(self, tokens: Tensor) -> Tensor:
        """What tokens ``(..., D)`` put into the gates, ``(..., 3D)``: linear, without the bias.

        In an export, the tokens themselves: the operator of a GRU takes these.
        """
        if torch.compiler.is_exporting():
            return tokens
        return linear(tokens, self.input.weight)

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
        return self._refined(self._steps(gates, state), residual, mask)

    def _steps(self, gates: Tensor, state: Tensor) -> Tensor:
        """The states after every token, ``(..., N, D)``."""
        if torch.compiler.is_exporting():
            weights = (self.input.weight, self.hidden.weight, self.input.bias, self.hidden.bias)
            rows = gru_states(gates.flatten(0, -3), state.flatten(0, -2), weights)
            exported: Tensor = rows.unflatten(0, gates.shape[:-2])
            return exported
        states = []
        for gate in (gates + self.input.bias).unbind(-2):
            reset, update, new = gate.chunk(3, -1)
            hidden_reset, hidden_update, hidden_new = self.hidden(state).chunk(3, -1)
            reset = (reset + hidden_reset).sigmoid()
            update = (update + hidden_update).sigmoid()
            new = (new + reset * hidden_new).tanh()
            state = new + update * (state - new)
            states.append(state)
        return torch.stack(states, dim=-2)

    def _refined(self, states: Tensor, residual: Tensor, mask: Tensor | None) -> Tensor:
        return fill_padding(l2_normalize(states + residual), mask)
