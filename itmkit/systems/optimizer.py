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
        lr_factors: name prefix → factor on the rate of all parameters whose name begins with it;
            the longest matching prefix wins. A group has its factor as ``lr_factor``.

    Raises:
        InputError: for a prefix that no parameter's name begins with.
    """
    groups: dict[float, list[Tensor]] = {}
    unused = set(lr_factors)
    for name, parameter in model.named_parameters():
        prefixes = [prefix for prefix in lr_factors if name.startswith(prefix)]
        unused -= set(prefixes)
        if parameter.requires_grad:
            factor = lr_factors[max(prefixes, key=len)] if prefixes else 1.0
            groups.setdefault(factor, []).append(parameter)
    if unused:
        raise InputError(
            f"lr_factors has {min(unused)!r}; expected a prefix of the name of a parameter of "
            f"{type(model).__name__}"
        )
    parts = [{"params": params, "lr_factor": factor} for factor, params in groups.items()]
    optimizer = AdamW(parts, lr=2e-4, weight_decay=1e-4) if make is None else make(parts)
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * group["lr_factor"]
    return optimizer
