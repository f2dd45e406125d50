"""The optimizer of a system, with a learning rate for every part."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from itmkit.checks import InputError


def make_optimizer(
    model: nn.Module, make: OptimizerCallable | None, lr_factors: Mapping[str, float]
) -> Optimizer:
    """An optimizer of all parameters that have a gradient, in groups by learning-rate factor.

    Args:
        model: whose parameters they are.
        make: makes the optimizer from the groups; None: AdamW, lr 2e-4, weight decay 1e-4.
        lr_factors: factor on the rate of all parameters whose name starts so; the longest start
            wins. A group has its factor as ``lr_factor``.

    Raises:
        InputError: if no parameter has a name that starts so.
    """
    groups: dict[float, list[Tensor]] = {}
    unused = set(lr_factors)
    for name, parameter in model.named_parameters():
        starts = [start for start in lr_factors if name.startswith(start)]
        unused -= set(starts)
        if parameter.requires_grad:
            factor = lr_factors[max(starts, key=len)] if starts else 1.0
            groups.setdefault(factor, []).append(parameter)
    if unused:
        raise InputError(
            f"lr_factors names {sorted(unused)[0]!r}, but no parameter of {type(model).__name__} "
            "starts so"
        )
    parts = [{"params": params, "lr_factor": factor} for factor, params in groups.items()]
    optimizer = AdamW(parts, lr=2e-4, weight_decay=1e-4) if make is None else make(parts)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_factor"]
    return optimizer
