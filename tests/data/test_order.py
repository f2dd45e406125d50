from __future__ import annotations

import random
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from itmkit.data.loader import Loader
from itmkit.data.order import EpochOrder, mixed_seed, seeded


def batches(order: EpochOrder) -> list[list[int]]:
    rows = [row for _, row in order]
    return [rows[i : i + order.batch_size] for i in range(0, len(rows), order.batch_size)]


def test_every_row_once_an_epoch_in_a_new_order() -> None:
    order = EpochOrder(20, batch_size=5, seed=1)
    seen = []
    for epoch in range(3):
        order.set_epoch(epoch)
        pairs = list(order)
        assert {e for e, _ in pairs} == {epoch}
        assert sorted(row for _, row in pairs) == list(range(20))
        seen.append(tuple(row for _, row in pairs))
    assert len(set(seen)) == 3
    assert [row for _, row in EpochOrder(20, batch_size=5, seed=1)] == list(seen[0])
    assert [row for _, row in EpochOrder(20, batch_size=5, seed=2)] != list(seen[0])


@pytest.mark.parametrize("replicas", [2, 3])
def test_processes_together_see_the_batches_of_one(replicas: int) -> None:
    one = batches(EpochOrder(25, batch_size=2 * replicas, seed=0))
    parts = [
        batches(EpochOrder(25, batch_size=2, seed=0, num_replicas=replicas, rank=rank))
        for rank in range(replicas)
    ]
    assert [[row for part in step for row in part] for step in zip(*parts, strict=True)] == one


def test_rows_that_fill_no_batch_are_left_out() -> None:
    order = EpochOrder(11, batch_size=2, seed=0, num_replicas=2, rank=1)
    assert len(list(order)) == len(order) == 4


def test_error_where_no_batch_is_full() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 4 on 2 process\(es\); expected at most 3"):
        EpochOrder(7, batch_size=4, seed=0, num_replicas=2)


SIZES = torch.tensor([(7 * row) % 31 for row in range(203)])


def bucketed(**options: int) -> EpochOrder:
    options = {"batch_size": 4, "seed": 3, "bucket_batches": 5, **options}
    return EpochOrder(203, sizes=SIZES, **options)


def test_buckets_gather_close_sizes_and_keep_the_rows_of_the_epoch() -> None:
    order, plain = bucketed(), bucketed(bucket_batches=0)
    assert list(plain) == list(EpochOrder(203, batch_size=4, seed=3))
    epochs = []
    for epoch in range(2):
        order.set_epoch(epoch)
        plain.set_epoch(epoch)
        own, expected = batches(order), batches(plain)
        epochs.append(own)
        assert len(own) == 50
        for start in range(0, 50, 5):  # each bucket has the rows that it had, once
            rows = [
                sorted(chain.from_iterable(each[start : start + 5])) for each in (own, expected)
            ]
            assert rows[0] == rows[1]
            spans = sorted(
                (min(SIZES[batch]), max(SIZES[batch])) for batch in own[start : start + 5]
            )
            assert all(a[1] <= b[0] for a, b in pairwise(spans))
        longest = [int(SIZES[batch].max()) for batch in own]
        assert sum(longest) < 0.8 * sum(int(SIZES[batch].max()) for batch in expected)
        assert longest[:5] != sorted(longest[:5]) or longest[5:10] != sorted(longest[5:10])
    assert epochs[0] != epochs[1]
    order.set_epoch(0)
    assert batches(order) == epochs[0]
    assert batches(bucketed(seed=4)) != epochs[0]


@pytest.mark.parametrize("replicas", [2, 4])
def test_processes_share_the_buckets_of_one(replicas: int) -> None:
    one = batches(bucketed(batch_size=8))
    parts = [
        batches(bucketed(batch_size=8 // replicas, num_replicas=replicas, rank=rank))
        for rank in range(replicas)
    ]
    assert [list(chain.from_iterable(step)) for step in zip(*parts, strict=True)] == one


def test_error_of_buckets_without_sizes() -> None:
    for sizes, found in ((None, "None"), (SIZES, r"\(203,\)")):
        with pytest.raises(ValueError, match=rf"sizes has the shape {found}; expected \(20,\)"):
            EpochOrder(20, batch_size=2, seed=0, bucket_batches=2, sizes=sizes)


def test_seeded_gives_one_stream_and_puts_the_others_back() -> None:
    def draw() -> list[float]:
        return [torch.rand(()).item(), random.random(), np.random.rand()]

    random.seed(5)
    before = draw()
    torch.manual_seed(0), random.seed(5), np.random.seed(0)
    with seeded(2**63 + 7):
        inside = draw()
    assert draw() == before
    with seeded(2**63 + 7):
        assert draw() == inside
    with pytest.raises(RuntimeError), seeded(1):
        raise RuntimeError


def test_mixed_seeds_of_close_numbers_differ() -> None:
    seeds = {mixed_seed(a, b, c) for a in range(5) for b in range(5) for c in range(20)}
    assert len(seeds) == 500
    assert mixed_seed(1, 2, 3) == mixed_seed(1, 2, 3)


class Keys(Dataset[Any]):
    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key

    def __len__(self) -> int:
        return 20


@pytest.mark.parametrize(("workers", "buckets"), [(0, 0), (2, 0), (0, 4)])
def test_loader_goes_on_in_the_middle_of_an_epoch(workers: int, buckets: int) -> None:
    def make() -> Loader:
        order = EpochOrder(
            20, batch_size=3, seed=0, bucket_batches=buckets, sizes=torch.arange(20) % 7
        )
        return Loader(Keys(), batch_size=3, sampler=order, num_workers=workers, collate_fn=list)

    loader = make()
    passes = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        passes.append(list(loader))
    assert all(len(one) == len(loader) == 6 for one in passes)

    loader.sampler.set_epoch(1)
    iterator = iter(loader)
    for _ in range(4):
        next(iterator)
    state = loader.state_dict()
    assert state == {"epoch": 1, "batches": 4}

    resumed = make()
    resumed.load_state_dict(state)
    iterator = iter(resumed)  # Lightning makes the iterator before it names the epoch
    resumed.sampler.set_epoch(1)
    assert next(iterator) == passes[1][4]
    assert resumed.state_dict() == {"epoch": 1, "batches": 5}
    assert list(iterator) == passes[1][5:]
    resumed.sampler.set_epoch(2)
    assert list(resumed) == passes[2]

    resumed = make()  # the state of a finished epoch leaves the next one whole
    resumed.load_state_dict({"epoch": 1, "batches": 6})
    resumed.sampler.set_epoch(2)
    assert list(resumed) == passes[2]
