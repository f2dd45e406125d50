"""Batch statistics of all processes for the BatchNorm layers that a model already has."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from itmkit.distributed import world_size
from itmkit.nn.layers.masked_batch_norm import global_moments

_KINDS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d),
)


def synchronise_batch_norm(model: nn.Module) -> list[RemovableHandle]:
    r"""Let every BatchNorm of a model normalise by the statistics of the global batch.

    .. math:: y = \gamma\,(x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    where in training :math:`\mu` and :math:`\sigma^2` are those of all processes, so that loss and
    gradients do not depend on their number. The layers stay what they are, with their parameters,
    buffers and names; in eval mode and in one process nothing changes.

    ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` puts other layers in their place, which run on
    GPUs only, and which lack what a subclass has besides: of timm's BatchNorm layers with an
    activation it leaves out the activation. :class:`MaskedBatchNorm` needs none of this.

    Args:
        model: what holds the layers: ``nn.BatchNorm1d`` to ``3d`` and their subclasses.

    Returns:
        Handles; ``remove()`` of all of them makes the layers as they were.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> handles = synchronise_batch_norm(model)
        >>> len(handles)
        2
        >>> for handle in handles:
        ...     handle.remove()
    """
    handles: list[RemovableHandle] = []
    for module in model.modules():
        if isinstance(module, _KINDS):
            handles.append(module.register_forward_pre_hook(_normalise))
            handles.append(module.register_forward_hook(_put_back, always_call=True))
    return handles


def _normalise(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor] | None:
    """Normalise by the global statistics, and let the layer find nothing left to normalise."""
    (x,) = inputs
    if not module.training or world_size() == 1:
        return None
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    dims = [dim for dim in range(x.dim()) if dim != 1]
    count = wide.new_tensor(float(x.numel() // x.shape[1]))
    local = wide.mean(dims, keepdim=True)
    square = (wide - local).square().sum(dims)
    total, mean, square = global_moments(count, local.flatten(), square)
    if module.track_running_stats:
        _update(module, mean.detach(), square.detach() / (total - 1).clamp_min(1))
    module._kept = module.running_mean, module.running_var
    module.running_mean = torch.zeros_like(mean)
    module.running_var = torch.ones_like(mean) - module.eps
    module.training = False
    shape = local.shape
    scale = (square / total + module.eps).rsqrt()
    return (((wide - mean.view(shape)) * scale.view(shape)).to(x.dtype),)


def _put_back(module: Any, inputs: Any, output: Any) -> None:
    kept = module.__dict__.pop("_kept", None)
    if kept is not None:
        module.running_mean, module.running_var = kept
        module.training = True


@torch.no_grad()
def _update(module: Any, mean: Tensor, variance: Tensor) -> None:
    module.num_batches_tracked += 1
    step = module.momentum
    if step is None:  # the mean of all batches
        step = 1.0 / float(module.num_batches_tracked)
    module.running_mean += step * (mean - module.running_mean)
    module.running_var += step * (variance - module.running_var)
