"""Checks of the arguments of a loss."""

from __future__ import annotations

from torch import Tensor


def check_non_negative(**numbers: float | Tensor) -> None:
    """Raise unless each number is finite and at least 0; a tensor is trusted."""
    for name, value in numbers.items():
        if not isinstance(value, Tensor) and not 0 <= value < float("inf"):
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value!r}")


def check_positive(**numbers: float) -> None:
    """Raise unless each number is finite and above 0."""
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")


def check_count(**numbers: int) -> None:
    """Raise unless each number is at least 1."""
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value!r}")


def check_shape(shape: tuple[int, ...], **tensors: Tensor) -> None:
    """Raise unless each tensor has that shape."""
    for name, tensor in tensors.items():
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")


def check_pairs(**vectors: Tensor) -> None:
    """Raise unless all are matrices ``(n, D)`` of one shape."""
    shapes = [tuple(tensor.shape) for tensor in vectors.values()]
    if len(shapes[0]) != 2 or len(set(shapes)) != 1:
        raise ValueError(f"{', '.join(vectors)}: expected one shape (n, D), got {shapes}")
