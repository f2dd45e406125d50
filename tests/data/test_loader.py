from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator

import pytest
from torch.utils.data import Dataset
from torch.utils.data._utils import signal_handling

from itmkit.data.loader import Loader


def test_dead_worker_is_an_error_where_data_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)  # torch sets it but once
    before = signal.getsignal(signal.SIGCHLD)
    batches = iter(Loader(range(100), num_workers=2))  # type: ignore[arg-type]
    assert next(batches).tolist() == [0]
    assert signal.getsignal(signal.SIGCHLD) is before
    worker = multiprocessing.active_children()[0]
    worker.kill()
    worker.join()
    with pytest.raises(RuntimeError, match=r"DataLoader worker \(pid\(s\) \d+\) exited unexpect"):
        list(batches)


class Breaking(Dataset[int]):
    """Raises what a connection to a dead process raises, too."""

    def __getitem__(self, row: int) -> int:
        raise EOFError("a short file")

    def __len__(self) -> int:
        return 4


@pytest.mark.parametrize("workers", [0, 1])
def test_error_of_the_dataset_stays_its_own(workers: int) -> None:
    with pytest.raises(EOFError, match="a short file"):
        list(Loader(Breaking(), num_workers=workers))


def test_error_of_a_connection_that_a_dead_worker_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(range(4), num_workers=1)  # type: ignore[arg-type]

    def started() -> Iterator[int]:
        yield 0
        raise EOFError

    monkeypatch.setattr(loader, "_started", started)
    with pytest.raises(RuntimeError, match="DataLoader worker was killed as it handed over"):
        list(loader)


def test_without_workers() -> None:
    assert [batch.tolist() for batch in Loader(range(4), batch_size=2)] == [[0, 1], [2, 3]]  # type: ignore[arg-type]
