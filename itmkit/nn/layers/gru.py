"""A GRU as one operator over padded tokens, which can be exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def gru_states(tokens: Tensor, state: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """States of a GRU of one direction after every token, by the operator ``itmkit::gru``.

    For ``torch.export``, which takes a GRU apart into a loop over its tokens, and so fixes their
    number, and which has no packed sequences. A program with it needs ``itmkit.nn`` to be imported.

    Args:
        tokens: ``(B, N, E)``.
        state: ``(B, D)`` before the first token.
        weights: ``weight_ih``, ``weight_hh``, ``bias_ih`` and ``bias_hh``, as of ``nn.GRU``.

    Returns:
        ``(B, N, D)``.
    """
    states: Tensor = _gru(tokens, state, *weights)
    return states


@torch.library.custom_op("itmkit::gru", mutates_args=())
def _gru(
    tokens: Tensor,
    state: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
) -> Tensor:
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    states, _ = torch.gru(tokens, state.unsqueeze(0), weights, True, 1, 0.0, False, False, True)
    return states.contiguous()


@_gru.register_fake
def _shape(tokens: Tensor, state: Tensor, *_: Tensor) -> Tensor:
    return tokens.new_empty(*tokens.shape[:2], state.shape[1])
