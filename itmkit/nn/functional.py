"""Small functions that the modules of :mod:`itmkit.nn` share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.nn.layers.linear import Linear


def fill_padding(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens ``(..., N, D)`` with zeros where ``mask`` ``(..., N)`` is False."""
    return tokens if mask is None else tokens.masked_fill(~mask.unsqueeze(-1), 0)


def xavier_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """A Linear layer that starts Xavier-uniform, with zero bias."""
    layer = Linear(in_dim, out_dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def check_tokens(name: str, x: Tensor, dim: int, mask: Tensor | None, mask_name: str) -> None:
    """Raise unless ``x`` is ``(B, N, dim)`` and ``mask`` a bool ``(B, N)`` or None."""
    if x.ndim != 3 or x.shape[-1] != dim:
        raise InputError(f"{name} must have shape (batch, tokens, {dim}), got {tuple(x.shape)}")
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise InputError(f"{mask_name} must be bool (True = real token), got {mask.dtype}")
    if mask.shape != x.shape[:2]:
        raise InputError(
            f"{mask_name} must have shape {tuple(x.shape[:2])}, that of the tokens of {name}, "
            f"got {tuple(mask.shape)}"
        )


def check_ids(ids: Tensor, mask: Tensor, vocab_size: int) -> None:
    """Raise unless ``ids`` ``(B, L)`` are in ``[0, vocab_size)`` and fit ``mask``."""
    if ids.ndim != 2:
        raise InputError(f"ids must have shape (batch, length), got {tuple(ids.shape)}")
    if mask.dtype != torch.bool:
        raise InputError(f"mask must be bool (True = real token), got {mask.dtype}")
    if mask.shape != ids.shape:
        raise InputError(
            f"mask must have the shape of ids {tuple(ids.shape)}, got {tuple(mask.shape)}"
        )
    # Reading values would break a graph, or make a GPU wait, whose embedding refuses such ids.
    if ids.numel() == 0 or ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (int(value) for value in torch.stack(ids.aminmax()).tolist())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise InputError(f"ids must lie in [0, {vocab_size}) (vocab_size={vocab_size}), got {bad}")
