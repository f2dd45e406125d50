"""Precision of losses and scores: float32 under autocast, float64 for float64 inputs."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or as it is if it is float64.

    Example:
        >>> at_least_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def autocast_off(tensor: Tensor) -> torch.autocast:
    """A context in which operations on the device of ``tensor`` keep their precision.

    Example:
        >>> with autocast_off(torch.zeros(1)):
        ...     torch.is_autocast_enabled("cpu")
        False
    """
    return torch.autocast(tensor.device.type, enabled=False)
