"""The loader of every batch: it can go on in the middle of an epoch, and reports dead workers."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from itmkit.data.items import Items
from itmkit.data.order import EpochOrder


class Loader(DataLoader[Any]):
    """A DataLoader whose dead workers are an error when the next batch is asked for.

    torch also raises that error out of a handler of SIGCHLD, at whatever line the process is: while
    it logs, holds a lock or starts another worker, where the error is lost, taken for another one,
    or leaves the lock closed. This one takes the handler away again. Where data is waited for,
    torch looks after its workers every few seconds.

    Ctrl-C, which a terminal sends to all processes, does not reach the workers: the training
    process can save before it ends, and they end with it.

    Over an :class:`EpochOrder` it can go on in the middle of an epoch: Lightning saves
    :meth:`state_dict` with the checkpoint and names the epoch (``set_epoch``) before the first
    batch of every pass. What a worker read of :class:`Items` becomes a batch here, in the training
    process.
    """

    _seen = 0
    _resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing is read before the first `next`, when the epoch is known.
        order = self.sampler if isinstance(self.sampler, EpochOrder) else None
        resume, self._resume = self._resume, None
        self._seen = 0
        if order is not None:
            same = resume is not None and resume["epoch"] == order.epoch
            self._seen = order.skip = resume["batches"] if same and resume is not None else 0
        try:
            for batch in self._started():
                self._seen += 1
                if isinstance(self.dataset, Items):
                    batch = self.dataset.received(batch)
                    if batch is None:
                        continue
                    if order is not None:  # whole batches, the same on every process
                        batch = replace(batch, sizes=(len(batch),) * order.num_replicas)
                yield batch
        except (EOFError, ConnectionError) as error:
            if self.num_workers == 0 or "in DataLoader worker process" in str(error):
                raise  # out of the dataset
            raise RuntimeError("DataLoader worker was killed as it handed over a batch") from error

    def _started(self) -> Iterator[Any]:
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or not hasattr(signal, "SIGCHLD"):  # torch sets no handler either
            return super().__iter__()
        handler = signal.getsignal(signal.SIGCHLD)
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers inherit it
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its batches have been handed out."""
        epoch = self.sampler.epoch if isinstance(self.sampler, EpochOrder) else 0
        return {"epoch": epoch, "batches": self._seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next pass over that epoch start behind its batches already seen."""
        self._resume = dict(state)
