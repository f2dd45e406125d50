"""All-gather whose gradient is exact: a loss of gathered tensors is one global loss."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from itmkit.checks import InputError

_MAX_DIMS = 8


def gather(tensor: Tensor) -> Tensor:
    r"""All-gather along the first dimension, with a gradient.

    .. math::

        y = [x_0; x_1; \dots; x_{w-1}], \qquad
        \nabla x_r = \Big(\sum_{q} \nabla y^{(q)}\Big)_{\text{rows of rank } r}

    The backward pass sums the gradients of all ranks and hands every rank its own rows. So when
    each rank computes the same loss from gathered tensors, the *mean* over ranks of the parameter
    gradients (what DDP takes) is the gradient of that loss in a single process; nothing is to be
    multiplied by the world size.

    Without an initialised process group, or with one rank, the tensor itself is returned.

    Args:
        tensor: rows of this rank. The number of rows may differ between ranks (zero included), the
            other sizes and the dtype may not. Integer and bool tensors are gathered without a
            gradient. Every rank has to call this in the same order, and alike in ``requires_grad``.

    Shape:
        ``(n_r, ...)`` on rank ``r`` → ``(n_0 + … + n_{w-1}, ...)``, in the order of the ranks.

    Returns:
        The rows of all ranks, the same on every rank.

    Raises:
        InputError: if ``tensor`` has no dimension, or the ranks differ in the other sizes.

    Example:
        >>> gather(torch.arange(3))  # one process: nothing to gather
        tensor([0, 1, 2])
    """
    if not 1 <= tensor.dim() <= _MAX_DIMS:
        raise InputError(f"tensor: expected 1 to {_MAX_DIMS} dimensions, got {tensor.dim()}")
    if world_size() == 1:
        return tensor
    if tensor.dtype == torch.bool:
        return gather(tensor.to(torch.uint8)).bool()
    sizes = _row_counts(tensor)
    if tensor.is_floating_point() or tensor.is_complex():
        gathered: Tensor = _Gather.apply(tensor, sizes)
        return gathered
    return _all_gather(tensor, sizes)


def gather_tokens(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """:func:`gather` token tensors whose number of tokens may differ between ranks.

    Args:
        tokens: ``(n_r, N_r, D)`` on rank r.
        mask: ``(n_r, N_r)`` bool, True on real tokens; None if all are real.

    Returns:
        Tokens ``(n, N, D)`` of all ranks, padded at the end to the longest, and their mask; None
        if no rank has one and all have the same number of tokens.
    """
    if world_size() == 1:
        return tokens, mask
    size = torch.tensor([[tokens.shape[1], mask is not None]], device=tokens.device)
    sizes, masked = gather(size).T.tolist()
    if not any(masked) and min(sizes) == max(sizes):
        return gather(tokens), None
    missing = max(sizes) - tokens.shape[1]
    if mask is None:
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return gather(F.pad(tokens, (0, 0, 0, missing))), gather(F.pad(mask, (0, missing)))


def world_size() -> int:
    """Number of processes; 1 without an initialised process group."""
    return dist.get_world_size() if _initialised() else 1


def rank() -> int:
    """Which process this is, from 0."""
    return dist.get_rank() if _initialised() else 0


def leave() -> None:
    """Leave the process group, if there is one, at the end of a process that has done its work.

    A process that ends as a member may abort: threads of gloo run while Python takes itself down.
    """
    if _initialised():
        dist.destroy_process_group()


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _row_counts(tensor: Tensor) -> list[int]:
    """Rows of each rank, after checking that the ranks agree on everything else."""
    shape = torch.full((1 + _MAX_DIMS,), -1, dtype=torch.int64, device=tensor.device)
    shape[: 1 + tensor.dim()] = torch.tensor([tensor.dim(), *tensor.shape], device=tensor.device)
    shapes = [torch.empty_like(shape) for _ in range(dist.get_world_size())]
    dist.all_gather(shapes, shape)
    table = torch.stack(shapes).tolist()
    found = [tuple(row[1 : 1 + row[0]]) for row in table]
    if any(other[1:] != found[0][1:] or len(other) != len(found[0]) for other in found):
        raise InputError(f"tensor: ranks may differ in the first size only, got shapes {found}")
    return [shape[0] for shape in found]


def _all_gather(tensor: Tensor, sizes: list[int]) -> Tensor:
    longest = max(sizes)
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return _all_gather(tensor.detach(), sizes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        rank = dist.get_rank()
        start = sum(ctx.sizes[:rank])
        return total[start : start + ctx.sizes[rank]], None
