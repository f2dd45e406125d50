"""The queue of vectors of earlier batches."""

import pytest
import torch

from itmkit.checks import InputError
from itmkit.systems.vector_queue import VectorQueue


def test_the_latest_come_first_and_the_oldest_fall_out() -> None:
    queue = VectorQueue(5, 2)
    assert queue.latest() == ()
    for batch in range(3):
        rows = torch.full((2, 2), float(batch))
        queue.push(rows, -rows, torch.tensor([2 * batch, 2 * batch + 1]))
    image, text, ids = queue.latest()
    assert ids.tolist() == [4, 5, 2, 3, 0]
    assert image[:, 0].tolist() == [2, 2, 1, 1, 0]
    assert text.equal(-image)


def test_rows_that_are_filled_are_known_after_loading() -> None:
    queue, other = VectorQueue(4, 2), VectorQueue(4, 2)
    assert other.latest() == ()
    queue.push(torch.ones(3, 2), torch.ones(3, 2), torch.arange(3))
    other.load_state_dict(queue.state_dict())
    assert [len(part) for part in other.latest()] == [3, 3, 3]


def test_error_of_a_size() -> None:
    with pytest.raises(InputError, match="queue_size is -1; expected 0 or more"):
        VectorQueue(-1, 2)
