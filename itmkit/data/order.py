"""In which order training reads its captions, and which randomness each of them gets.

Both follow from (seed, epoch, caption) alone: not from the number of workers or processes, and
not from where a run was stopped and resumed.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from itmkit.checks import InputError


def mixed_seed(*numbers: int) -> int:
    """One 64-bit seed from several non-negative numbers; close numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Global CPU randomness (torch, random, numpy) that starts at a seed, put back at the end.

    Args:
        seed: of 64 bits.
    """
    generator = torch.default_generator
    states = generator.get_state(), random.getstate(), np.random.get_state()
    try:
        generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def check_batch_size(batch_size: int, length: int, num_replicas: int) -> None:
    """Raise unless the rows fill a batch on each process.

    Raises:
        InputError: with the sizes.
    """
    if length < batch_size * num_replicas:
        raise InputError(
            f"batch_size is {batch_size} on {num_replicas} process(es); expected at most "
            f"{length // num_replicas} for {length} rows of training data"
        )


class _Rows(Dataset[int]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


class EpochOrder(DistributedSampler[Any]):
    """A new order of all rows every epoch, cut into batches that k processes share.

    Batch t of process r is the r-th part of batch t of a single process with k times the batch
    size: gathered over the processes, both are the same rows in the same order. Rows that fill
    no whole batch are left out of that epoch. Yields pairs (epoch, row).

    With ``bucket_batches`` the rows of so many batches that follow each other in the new order are
    dealt out again: each of these batches gets rows of close ``sizes``, and the batches come in an
    order drawn at random. Which rows an epoch has does not change by it.

    Args:
        length: number of rows.
        batch_size: rows of a batch on one process.
        seed: of the order.
        num_replicas: number of processes.
        rank: which one of them this is.
        bucket_batches: number of batches that rows of close sizes are gathered from; 0 or 1: none.
        sizes: ``(length,)`` of every row, such as its number of tokens; for ``bucket_batches``.

    Raises:
        InputError: if the rows do not fill one batch, or ``sizes`` is not one number a row.

    Example:
        >>> order = EpochOrder(6, batch_size=2, seed=0, num_replicas=1, rank=0)
        >>> epoch_0 = [row for _, row in order]
        >>> sorted(epoch_0)
        [0, 1, 2, 3, 4, 5]
        >>> order.set_epoch(1)
        >>> [row for _, row in order] == epoch_0
        False
    """

    def __init__(
        self,
        length: int,
        *,
        batch_size: int,
        seed: int,
        num_replicas: int = 1,
        rank: int = 0,
        bucket_batches: int = 0,
        sizes: Tensor | None = None,
    ) -> None:
        check_batch_size(batch_size, length, num_replicas)
        if bucket_batches > 1 and (sizes is None or sizes.shape != (length,)):
            found = None if sizes is None else tuple(sizes.shape)
            raise InputError(
                f"sizes has the shape {found}; expected ({length},) for "
                f"bucket_batches={bucket_batches}"
            )
        super().__init__(_Rows(length), num_replicas, rank, seed=seed, drop_last=True)
        self.length = length
        self.batch_size = batch_size
        self.batches = length // (batch_size * num_replicas)
        self.num_samples = self.batches * batch_size
        self.total_size = self.num_samples * num_replicas
        self.bucket_batches = bucket_batches
        self.sizes = sizes
        #: how many batches of the next pass are left out, because they were seen before
        self.skip = 0
        #: rows ``(total_size,)`` of the next passes, chosen by somebody else; None: a new order
        self.chosen: Tensor | None = None

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, start = self._drawn_epoch(), self.skip
        generator = Generator().manual_seed(mixed_seed(self.seed, epoch))
        if self.chosen is not None:
            order = self.chosen
        else:
            order = torch.randperm(self.length, generator=generator)[: self.total_size]
            if self.bucket_batches > 1 and self.sizes is not None:
                order = self._bucketed(order, self.sizes, generator)
        mine = order.reshape(self.batches, self.num_replicas, self.batch_size)[:, self.rank]
        return ((epoch, row) for row in mine[start:].flatten().tolist())

    def _drawn_epoch(self) -> int:
        """The epoch that order and randomness of the next pass are drawn for."""
        return self.epoch

    def _bucketed(self, order: Tensor, sizes: Tensor, generator: Generator) -> Tensor:
        batch = self.batch_size * self.num_replicas
        buckets = []
        for bucket in order.split(self.bucket_batches * batch):
            by_size = sizes[bucket].argsort(stable=True).reshape(-1, batch)
            # in a batch the rows keep their order: each process gets long and short ones
            drawn = torch.randperm(len(by_size), generator=generator)
            buckets.append(bucket[by_size.sort(1).values[drawn]].flatten())
        return torch.cat(buckets)

    def __len__(self) -> int:
        return self.num_samples


class RepeatedOrder(EpochOrder, SequentialSampler):  # type: ignore[misc]
    """The order of the first epoch, with its randomness, in every epoch.

    For ``overfit_batches`` of a Trainer, which leaves a ``SequentialSampler`` alone and replaces
    every other one. Takes what :class:`EpochOrder` takes.
    """

    def _drawn_epoch(self) -> int:
        return 0
