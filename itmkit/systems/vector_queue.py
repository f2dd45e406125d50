"""The vectors of earlier batches, for a loss that compares with more than one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from itmkit.checks import check_count


class VectorQueue(nn.Module):
    """Vectors of images and of their captions, the latest first, until newer ones take their place.

    Its buffers are saved with a checkpoint and are not loaded by ``--init_from``: they belong to a
    run, not to its weights.

    Args:
        size: rows that it holds at most.
        dim: width of the vectors.

    Raises:
        InputError: a number out of its range.

    Example:
        >>> queue = VectorQueue(3, 2)
        >>> queue.push(torch.ones(2, 2), torch.ones(2, 2), torch.tensor([4, 5]))
        >>> queue.push(torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor([6, 7]))
        >>> image, text, ids = queue.latest()
        >>> ids
        tensor([6, 7, 4])
    """

    image: Tensor
    text: Tensor
    ids: Tensor

    training_state = ("image", "text", "ids")

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        check_count(0, queue_size=size)
        self.register_buffer("image", torch.zeros(size, dim))
        self.register_buffer("text", torch.zeros(size, dim))
        self.register_buffer("ids", torch.full((size,), -1))
        self._filled: int | None = None  # None where the rows are to be counted
        self.register_load_state_dict_post_hook(_count_anew)  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self.ids)

    def latest(self) -> tuple[Tensor, Tensor, Tensor] | tuple[()]:
        """Vectors of images ``(q, D)``, of captions, and ids ``(q,)``; nothing while empty."""
        if self._filled is None:  # not in every step: a GPU would wait
            self._filled = int((self.ids >= 0).sum())
        if not self._filled:
            return ()
        return self.image[: self._filled], self.text[: self._filled], self.ids[: self._filled]

    def push(self, image: Tensor, text: Tensor, ids: Tensor) -> None:
        """Put rows before those that are there; the oldest fall out."""
        for queue, newer in ((self.image, image), (self.text, text), (self.ids, ids)):
            queue.copy_(torch.cat([newer, queue])[: len(queue)])
        if self._filled is not None:
            self._filled = min(self._filled + len(ids), len(self))


def _count_anew(queue: VectorQueue, _: Any) -> None:
    queue._filled = None
