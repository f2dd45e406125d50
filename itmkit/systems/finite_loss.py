"""A training loss that is not finite ends the run; no GPU waits for the look at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from itmkit.checks import InputError
from itmkit.distributed import rank, world_size


@dataclass
class _Step:
    name: str
    terms: list[str]
    values: Tensor  # on the host, complete once they are copied
    copied: torch.cuda.Event | None
    image_ids: Tensor


class FiniteLoss:
    """Keeps the terms of the latest training step and refuses a loss that is not finite.

    Elsewhere than on a GPU the check is immediate. The terms of a GPU are copied while it computes,
    and checked one step later, when the copy is long done; :meth:`check` checks the latest.
    Where the loss is the same on every process, all of them stop at the same step.
    """

    def __init__(self) -> None:
        self._latest: _Step | None = None

    def __reduce__(self) -> tuple[type[FiniteLoss], tuple[()]]:
        return FiniteLoss, ()  # a copy has seen nothing

    def watch(self, terms: Mapping[str, Tensor], image_ids: Tensor, *, step: str) -> None:
        """Take the terms of a step, and check those of the step before.

        Args:
            terms: the loss under ``"loss"``, and what it is the sum of, all without dimensions.
            image_ids: the image of each row of the batch.
            step: how to call the step.

        Raises:
            InputError: if the loss of the step before, or elsewhere than on a GPU this one's, is
                not finite.
        """
        values = torch.stack([term.detach().to(terms["loss"]) for term in terms.values()])
        copied = None
        if values.is_cuda:
            copied, stream = torch.cuda.Event(), torch.cuda.current_stream(values.device)
            values = values.to("cpu", non_blocking=True)  # page-locked
            copied.record(stream)
        self.check()
        self._latest = _Step(step, list(terms), values, copied, image_ids)
        if copied is None:
            self.check()

    def check(self) -> None:
        """Raise if the latest loss is not finite, as often as asked.

        Raises:
            InputError: with the step, its terms and the images of this process.
        """
        latest = self._latest
        if latest is None:
            return
        if latest.copied is not None:
            latest.copied.synchronize()
        values = dict(zip(latest.terms, latest.values.tolist(), strict=True))
        if latest.values[latest.terms.index("loss")].isfinite():
            self._latest = None
            return
        listed = ", ".join(f"{name}={value:.6g}" for name, value in values.items())
        process = f" of process {rank()}" if world_size() > 1 else ""
        rows = ", ".join(map(str, latest.image_ids.tolist()))
        raise InputError(
            f"the training loss is not finite in {latest.name}: {listed}; "
            f"rows of the images{process} in the training data: {rows}"
        )
