"""All-gather whose gradient is exact: a loss of gathered tensors is one global loss."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from itmkit.checks import InputError

_MAX_DIMS = 8


def gather(tensor: Tensor, *, sizes: Sequence[int] | None = None) -> Tensor:
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
        sizes: number of rows of every rank, where the caller knows it; the ranks then do not have
            to exchange their shapes first, which makes a GPU wait.

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
    return gather_all([tensor], sizes=sizes)[0]


def gather_all(tensors: Sequence[Tensor], *, sizes: Sequence[int] | None = None) -> list[Tensor]:
    """:func:`gather` several tensors of the same rows at once, by one collective each way.

    Args:
        tensors: of this rank, all with the same number of rows; see :func:`gather`.
        sizes: see :func:`gather`.

    Returns:
        The rows of all ranks of each tensor.

    Raises:
        InputError: as :func:`gather`, or if the tensors differ in their number of rows.

    Example:
        >>> gather_all([torch.zeros(2, 3), torch.arange(2)])
        [tensor([[0., 0., 0.],
                [0., 0., 0.]]), tensor([0, 1])]
    """
    for tensor in tensors:
        if not 1 <= tensor.dim() <= _MAX_DIMS:
            raise InputError(f"tensor has {tensor.dim()} dimensions; expected 1 to {_MAX_DIMS}")
        if len(tensor) != len(tensors[0]):
            raise InputError(f"a tensor has {len(tensor)} rows; expected {len(tensors[0])}")
    if world_size() == 1:
        return list(tensors)
    if sizes is not None and (len(sizes), sizes[rank()]) != (world_size(), len(tensors[0])):
        raise InputError(
            f"sizes is {list(sizes)}; expected the rows of {world_size()} processes, "
            f"{len(tensors[0])} of process {rank()}"
        )
    if sizes is None:
        sizes = [shapes[0][0] for shapes in _exchange_shapes(tensors)]
    return list(_Gather.apply(tuple(sizes), *tensors))


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


def _exchange_shapes(tensors: Sequence[Tensor]) -> list[list[tuple[int, ...]]]:
    """Shapes of the tensors on each rank, after checking that only the rows differ."""
    device = tensors[0].device
    own = torch.full((len(tensors), 1 + _MAX_DIMS), -1, dtype=torch.int64)
    for row, tensor in zip(own, tensors, strict=True):
        row[: 1 + tensor.dim()] = torch.tensor([tensor.dim(), *tensor.shape])
    table = torch.stack(_all_gather(own.to(device))).tolist()
    found = [[tuple(row[1 : 1 + row[0]]) for row in rank] for rank in table]
    for shapes in zip(*found, strict=True):
        if len({shape[1:] for shape in shapes}) > 1:
            raise InputError(
                f"tensor: ranks may differ in the first size only, got shapes {list(shapes)}"
            )
    return found


def _all_gather(tensor: Tensor) -> list[Tensor]:
    """The tensor of each rank, all of one shape."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def _columns(tensor: Tensor) -> int:
    return prod(tensor.shape[1:])


class _Gather(torch.autograd.Function):
    """Packs the rows of all tensors as bytes; their gradients in the widest of the dtypes."""

    @staticmethod
    def forward(ctx: Any, sizes: tuple[int, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.sizes = sizes
        ctx.kinds = [(tensor.shape[1:], tensor.dtype) for tensor in tensors]
        rows = [tensor.reshape(len(tensor), _columns(tensor)) for tensor in tensors]
        packed = torch.cat(
            [row.clone(memory_format=torch.contiguous_format).view(torch.uint8) for row in rows],
            dim=1,
        )
        packed = F.pad(packed, (0, 0, 0, max(sizes) - len(packed)))
        parts = [part[:size] for part, size in zip(_all_gather(packed), sizes, strict=True)]
        widths = [_columns(tensor) * tensor.element_size() for tensor in tensors]
        split = torch.cat(parts).split(widths, dim=1)
        gathered = tuple(
            part.clone(memory_format=torch.contiguous_format)
            .view(tensor.dtype)
            .reshape(-1, *tensor.shape[1:])
            if _columns(tensor)
            else tensor.new_empty(sum(sizes), *tensor.shape[1:])
            for part, tensor in zip(split, tensors, strict=True)
        )
        ctx.mark_non_differentiable(*(one for one in gathered if not one.is_floating_point()))
        return gathered

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
        flat = [grads[i].reshape(len(grads[i]), _columns(grads[i])) for i in wanted]
        longest, own = max(ctx.sizes), ctx.sizes[dist.get_rank()]
        total = torch.cat(flat, dim=1)  # promotes to the widest dtype
        parts = [
            F.pad(part, (0, 0, 0, longest - len(part))).contiguous()
            for part in total.split(list(ctx.sizes))
        ]
        summed = torch.empty_like(parts[0])
        dist.reduce_scatter(summed, parts)
        found: list[Tensor | None] = [None] * len(ctx.kinds)
        for i, part in zip(
            wanted, summed[:own].split([part.shape[1] for part in flat], dim=1), strict=True
        ):
            shape, dtype = ctx.kinds[i]
            found[i] = part.to(dtype).reshape(own, *shape)
        return None, *found
