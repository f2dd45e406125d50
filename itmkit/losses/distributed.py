"""Any loss of a batch as the loss of the global batch of all processes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import InputError, integer_vector
from itmkit.distributed import gather, world_size


class Distributed(nn.Module):
    r"""A loss, called with the rows of all processes, so that each rank has the loss of all.

    .. math::

        L_r(x_r) = L\big([x_0; x_1; \dots; x_{w-1}]\big) \quad \text{on every rank } r

    The contract: the loss is the same on every rank, the gradient of a rank's rows is summed over
    ranks, and the *mean* of the parameter gradients, which ``DistributedDataParallel`` takes, is
    the exact gradient of one process with the whole batch: nothing is multiplied by the number of
    processes, and their shares need not be of one size. In one process it is the loss itself.

    Every tensor argument with a dimension is gathered along the first: vectors, ids, masks; and so
    is an argument whose name ends in ``ids`` and that is a list or an array. Tensors without a
    dimension, such as a temperature, and whatever else is no tensor are passed on.

    A loss of a score matrix takes whole rows: each rank scores its own images against the captions
    of *all* ranks, ``image @ itmkit.distributed.gather(text).T``, and the rows are gathered here;
    likewise the rows of a mask.

    Args:
        loss: any loss of a batch; where it has parameters, put this inside of what DDP wraps.
        replicated: names of arguments of its ``forward`` that are the same on all ranks, such as
            a queue; they are passed on as they are.

    Shape:
        what ``loss`` takes, ``(n_r, ...)`` on rank r → what it returns for ``(n_0 + … , ...)``.

    Raises:
        InputError: for a name that is no argument of the loss; when called, if the ranks differ in
            any size but the first.

    Example:
        >>> import torch
        >>> from itmkit.losses import Distributed, HECTLoss
        >>> _ = torch.manual_seed(0)
        >>> loss = Distributed(HECTLoss())
        >>> loss(torch.randn(4, 8), torch.randn(4, 8), image_ids=torch.arange(4))
        tensor(2.1195)
    """

    def __init__(self, loss: nn.Module, *, replicated: Iterable[str] = ()) -> None:
        super().__init__()
        names = list(inspect.signature(loss.forward).parameters)
        self.replicated = list(replicated)
        for name in self.replicated:
            if name not in names:
                raise InputError(
                    f"replicated has {name!r}; expected arguments of {type(loss).__name__}, which "
                    f"are {names}"
                )
        self.loss = loss
        self._names = names

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of the rows of all ranks; every rank calls it with the same arguments."""
        values = [*args, *kwargs.values()]
        device = next((one.device for one in values if isinstance(one, Tensor)), None)
        more = [""] * (len(args) - len(self._names))  # too many: the error is the loss's own
        names = [*self._names[: len(args)], *more, *kwargs]
        everyones = [
            self._everyones(name, value, device) for name, value in zip(names, values, strict=True)
        ]
        named = dict(zip(kwargs, everyones[len(args) :], strict=True))
        loss: Tensor = self.loss(*everyones[: len(args)], **named)
        return loss

    def extra_repr(self) -> str:
        return f"replicated={self.replicated}" if self.replicated else ""

    def _everyones(self, name: str, value: Any, device: torch.device | None) -> Any:
        if name in self.replicated or value is None or world_size() == 1:
            return value
        if name.endswith("ids"):
            value = integer_vector(name, value, device=device)
        return gather(value) if isinstance(value, Tensor) and value.dim() else value
