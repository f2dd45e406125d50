"""A DataLoader that tells of a worker's death where it waits for data."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader


class Loader(DataLoader[Any]):
    """A DataLoader whose dead workers are an error when the next batch is asked for.

    torch also raises that error out of a handler of SIGCHLD, at whatever line the process is: while
    it logs, holds a lock or starts another worker, where the error is lost, taken for another one,
    or leaves the lock closed. This one takes the handler away again. Where data is waited for,
    torch looks after its workers every few seconds.

    Ctrl-C, which a terminal sends to all processes, does not reach the workers: the training
    process can save before it ends, and they end with it.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from self._started()
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
