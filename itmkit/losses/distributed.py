"""Any loss of a batch as the loss of the global batch of all processes."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.distributed import gather


class Distributed(nn.Module):
    r"""A loss, called with the rows of all processes, so that each rank has the loss of all.

    .. math::

        L_r(x_r) = L\big([x_0; x_1; \dots; x_{w-1}]\big) \quad \text{on every rank } r

    The contract: the loss is the same on every rank, the gradient of a rank's rows is summed over
    ranks, and the *mean* of the parameter gradients, which ``DistributedDataParallel`` takes, is
    the exact gradient of one process with the whole batch: nothing is multiplied by the number of
    processes, and their shares need not be of one size. In one process it is the loss itself.

    Every tensor argument with a dimension is gathered along the first: vectors, ids, masks. Tensors
    without one, such as a temperature, and whatever is no tensor are passed on.

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
        self._replicated = {*self.replicated, *map(names.index, self.replicated)}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The loss of the rows of all ranks; every rank calls it with the same arguments."""
        everyones = [self._everyones(place, value) for place, value in enumerate(args)]
        named = {name: self._everyones(name, value) for name, value in kwargs.items()}
        loss: Tensor = self.loss(*everyones, **named)
        return loss

    def extra_repr(self) -> str:
        return f"replicated={self.replicated}" if self.replicated else ""

    def _everyones(self, argument: int | str, value: Any) -> Any:
        if argument in self._replicated or not isinstance(value, Tensor) or not value.dim():
            return value
        return gather(value)
