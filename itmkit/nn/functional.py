"""Small functions that the modules of :mod:`itmkit.nn` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, check_bool, check_not_empty
from itmkit.nn.layers.linear import Linear


def fill_padding(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens ``(..., N, D)`` with zeros where ``mask`` ``(..., N)`` is False."""
    return tokens if mask is None else tokens.masked_fill(~mask.unsqueeze(-1), 0)


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A value with a function of each tensor in it, in (named) tuples, lists and dictionaries.

    Example:
        >>> map_tensors(torch.neg, (torch.tensor(1), {"mask": None}))
        (tensor(-1), {'mask': None})
    """
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        parts = [map_tensors(function, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def xavier_linear(in_dim: int, out_dim: int) -> nn.Linear:
    """A Linear layer that starts Xavier-uniform, with zero bias."""
    layer = Linear(in_dim, out_dim)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def check_tokens(name: str, x: Tensor, dim: int, mask: Tensor | None, mask_name: str) -> None:
    """Raise unless ``x`` is ``(B, N, dim)`` and ``mask`` a bool ``(B, N)`` or None."""
    if x.ndim != 3 or x.shape[-1] != dim:
        raise InputError(f"{name} has the shape {tuple(x.shape)}; expected (batch, tokens, {dim})")
    if mask is not None:
        check_bool(tuple(x.shape[:2]), None, "", **{mask_name: mask})


def check_ids(ids: Tensor, mask: Tensor, vocab_size: int) -> None:
    """Raise unless ``ids`` ``(B, L)`` are in ``[0, vocab_size)`` and fit ``mask``."""
    if ids.ndim != 2:
        raise InputError(f"ids has the shape {tuple(ids.shape)}; expected (batch, length)")
    check_bool(tuple(ids.shape), mask=mask)
    check_not_empty(ids=ids)
    # Reading values would break a graph, or make a GPU wait, whose embedding refuses such ids.
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (int(value) for value in torch.stack(ids.aminmax()).tolist())
    if low < 0 or high >= vocab_size:
        bad = low if low < 0 else high
        raise InputError(
            f"ids has the id {bad}; expected ids in [0, {vocab_size}), below the vocab_size"
        )
