"""Batch normalisation of tokens that leaves padding out of the statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from itmkit.checks import InputError, check_bool, check_count, check_positive, check_share
from itmkit.distributed import gather
from itmkit.nn.functional import fill_padding


class MaskedBatchNorm(nn.Module):
    r"""Batch normalisation over all real tokens of the global batch.

    .. math:: y = \gamma\,(x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta

    In training, mean and variance are those of the real tokens of *all* processes, so that neither
    padding nor the number of processes changes the result. In eval mode the running statistics are
    used. Parameters and buffers are named as in ``nn.BatchNorm1d``.

    Args:
        dim: number of channels D.
        eps: added to the variance, above 0.
        momentum: weight of the new statistics in the running ones, in [0, 1].

    Shape:
        - x: ``(..., D)``
        - mask: ``(...)`` bool, True on real tokens, or None
        - output: as ``x``; padding is counted nowhere, and comes out as a token of zeros would

    Raises:
        InputError: a number out of its range, ``x`` is not ``(..., dim)`` or ``mask`` does not fit
            it.

    Example:
        >>> norm = MaskedBatchNorm(4)
        >>> mask = torch.tensor([[True, True, False]])
        >>> norm(torch.randn(1, 3, 4), mask)[mask].mean(0).abs().max() < 1e-6
        tensor(True)
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, dim: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        check_count(dim=dim)
        check_positive(eps=eps)
        check_share(momentum=momentum)
        self.dim = dim
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}, momentum={self.momentum}"

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if x.shape[-1] != self.dim:
            raise InputError(f"x has the shape {tuple(x.shape)}; expected (..., {self.dim})")
        if mask is not None:
            check_bool(tuple(x.shape[:-1]), mask=mask)
        rows = fill_padding(x, mask).reshape(-1, self.dim)
        if not self.training:
            mean, var = self.running_mean, self.running_var
            out = F.batch_norm(rows, mean, var, self.weight, self.bias, eps=self.eps)
            return out.view(x.shape)
        wide = rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows
        mean, var = self._statistics(wide, None if mask is None else mask.reshape(-1))
        scale = self.weight * (var + self.eps).rsqrt()
        return ((wide - mean) * scale + self.bias).to(x.dtype).view(x.shape)

    def _statistics(self, rows: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and biased variance over all processes; the running ones are updated.

        Args:
            rows: ``(n, D)``, zero on padding.
            mask: ``(n,)`` bool, or None.
        """
        real = rows.new_ones(len(rows), 1) if mask is None else mask.to(rows.dtype).unsqueeze(1)
        count = real.sum()
        mean = rows.sum(0) / count.clamp_min(1)
        square = ((rows - mean).square() * real).sum(0)  # around the mean of this process
        total, mean, square = global_moments(count, mean, square)
        with torch.no_grad():
            step = self.momentum * (total > 0)  # a batch without a real token teaches nothing
            unbiased = square / (total - 1).clamp_min(1)
            self.running_mean += step * (mean - self.running_mean)
            self.running_var += step * (unbiased - self.running_var)
            self.num_batches_tracked += 1
        return mean, square / total.clamp_min(1)


def global_moments(count: Tensor, mean: Tensor, square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Moments over all processes from those of each, with gradients.

    Args:
        count: number of rows of this process, a scalar.
        mean: ``(D,)`` their mean.
        square: ``(D,)`` their sum of squares around that mean.

    Returns:
        The same three of all rows of all processes.
    """
    parts = gather(torch.cat([count.expand(1), mean, square]).unsqueeze(0))
    counts, means, squares = parts.split([1, len(mean), len(mean)], dim=1)
    total = counts.sum()
    mean = (counts * means).sum(0) / total.clamp_min(1)
    return total, mean, (squares + counts * (means - mean).square()).sum(0)
