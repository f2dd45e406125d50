"""A learning rate that rises for some steps and falls along a cosine."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from itmkit.checks import InputError


class WarmupCosine(LambdaLR):
    """Linear rise over ``warmup_steps``, then half a cosine to ``final`` at ``total_steps``.

    After that it stays at ``final``. Advance it by step.

    Args:
        optimizer: whose learning rates are the peaks.
        warmup_steps: steps of the rise, at least 0.
        total_steps: steps until the end of the fall, more than ``warmup_steps``.
        final: share of the peak that is left at the end, in [0, 1].

    Raises:
        InputError: if a number is out of its range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        >>> schedule, rates = WarmupCosine(optimizer, 2, 6), []
        >>> for _ in range(8):
        ...     rates.append(round(schedule.get_last_lr()[0], 2))
        ...     optimizer.step(), schedule.step()
        (None, None)
        ...
        >>> rates
        [0.5, 1.0, 1.0, 0.85, 0.5, 0.15, 0.0, 0.0]
    """

    def __init__(
        self, optimizer: Optimizer, warmup_steps: int, total_steps: int, *, final: float = 0.0
    ) -> None:
        if warmup_steps < 0:
            raise InputError(f"warmup_steps must be at least 0, got {warmup_steps}")
        if total_steps <= warmup_steps:
            raise InputError(
                f"total_steps must be more than warmup_steps={warmup_steps}, got {total_steps}"
            )
        if not 0 <= final <= 1:
            raise InputError(f"final must lie in [0, 1], got {final}")

        def factor(step: int) -> float:
            if step < warmup_steps:
                return (step + 1) / warmup_steps
            done = min((step - warmup_steps) / (total_steps - warmup_steps), 1.0)
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2

        super().__init__(optimizer, factor)
