"""Folds as a loop over the captions cuts them, and what does not fit a protocol."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from itmkit.checks import InputError
from itmkit.metrics import PROTOCOLS, Protocol
from itmkit.metrics.protocol import find_protocol


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 20), st.integers(0, 2**31))
def test_naive_loop_reference(folds, size, captions, seed):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randperm(50, generator=g)[: folds * size]
    owners = ids[torch.randint(len(ids), (captions,), generator=g)]
    parts = Protocol(folds=folds).split(ids, owners)
    assert len(parts) == folds
    for fold, (rows, columns) in enumerate(parts):
        images = list(range(fold * size, (fold + 1) * size))
        assert rows.tolist() == images
        own = {int(ids[row]) for row in images}
        assert columns.tolist() == [j for j, owner in enumerate(owners.tolist()) if owner in own]


def test_protocols_of_the_field():
    ids = torch.arange(5000)
    owners = ids.repeat_interleave(5)
    one = PROTOCOLS["coco-5k"].split(ids, owners)
    assert [(len(rows), len(columns)) for rows, columns in one] == [(5000, 25000)]
    five = PROTOCOLS["coco-1k"].split(ids, owners)
    assert [(len(rows), len(columns)) for rows, columns in five] == [(1000, 5000)] * 5
    assert five[3][0][0] == 3000
    assert five[3][1][0] == 15000
    (f30k,) = PROTOCOLS["f30k-1k"].split(ids[:1000], owners[:5000])
    assert (len(f30k[0]), len(f30k[1])) == (1000, 5000)


def test_find_protocol():
    assert find_protocol(None) == Protocol()
    assert find_protocol("coco-1k") is PROTOCOLS["coco-1k"]
    assert find_protocol(Protocol(folds=3)) == Protocol(folds=3)
    assert find_protocol(3) == Protocol(folds=3)
    with pytest.raises(InputError, match="folds is 0"):
        find_protocol(0)
    with pytest.raises(InputError, match="protocol is 'coco1k'; expected one of 'f30k-1k', 'coco"):
        find_protocol("coco1k")


def test_error():
    ids = torch.arange(6)
    with pytest.raises(InputError, match="6 images; the protocol expects 1000"):
        PROTOCOLS["f30k-1k"].split(ids, ids)
    with pytest.raises(InputError, match="image id 5 has 3 captions; the protocol expects 2"):
        Protocol(captions_per_image=2).split(
            ids, torch.cat([ids.repeat_interleave(2), torch.tensor([5])])
        )
    with pytest.raises(InputError, match="folds is 4; expected a divisor of the 6 images"):
        Protocol(folds=4).split(ids, ids)
    with pytest.raises(InputError, match="image_ids holds an id twice; expected each once"):
        Protocol(folds=2).split(ids // 2, ids)
    for name in ("folds", "images", "captions_per_image"):
        with pytest.raises(InputError, match=f"{name} is 0; expected 1 or more"):
            Protocol(**{name: 0})
