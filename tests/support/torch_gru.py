"""A GRU of torch with the weights of ours."""

from __future__ import annotations

from torch import nn

from itmkit.nn import TwoPartGRU


def torch_gru(ours: TwoPartGRU) -> nn.GRU:
    """The GRU of torch that ``ours`` computes with."""
    dim = ours.input.in_features
    gru = nn.GRU(dim, dim, batch_first=True, dtype=ours.input.weight.dtype)
    parts = {"ih": ours.input, "hh": ours.hidden}
    gru.load_state_dict(
        {f"weight_{name}_l0": part.weight for name, part in parts.items()}
        | {f"bias_{name}_l0": part.bias for name, part in parts.items()}
    )
    return gru
