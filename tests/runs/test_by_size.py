"""Batch size and length at 50 to 50,000 captions."""

from __future__ import annotations

import pytest

from itmkit.runs.by_size import EPOCHS, batch_size_for, steps_for

SIZES = sorted({*range(8, 200), *(2**n + more for n in range(7, 18) for more in (-1, 0, 1))})


@pytest.mark.parametrize(
    ("captions", "batch_size", "steps"),
    [(50, 8, 125), (500, 64, 157), (5_000, 1024, 98), (30_000, 1024, 300), (50_000, 1024, 388)],
)
def test_sizes(captions: int, batch_size: int, steps: int) -> None:
    assert batch_size_for(captions) == batch_size
    assert steps_for(captions, batch_size) == steps


def test_an_epoch_has_four_steps_and_a_run_at_most_twenty_epochs() -> None:
    for captions in SIZES:
        batch_size = batch_size_for(captions)
        steps = steps_for(captions, batch_size)
        assert captions // batch_size >= 4
        assert (steps - 1) * batch_size < EPOCHS * captions


def test_more_captions_are_never_seen_less() -> None:
    seen = [steps_for(captions, 1) for captions in SIZES]
    assert seen == sorted(seen)


def test_a_run_of_smaller_batches_sees_as_many_captions() -> None:
    for captions in (50, 5_000, 50_000):
        whole = steps_for(captions, 1)
        assert all(0 <= steps_for(captions, n) * n - whole < n for n in (2, 7, 64, 1024))
