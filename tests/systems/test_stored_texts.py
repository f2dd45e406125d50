"""Systems on texts that come as stored features of their tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from systems import LEVELS, SYSTEMS, make_batch

from itmkit.testing import check_matcher

CASES = [
    (name, "stored_levels" if case.encoders == LEVELS else "stored")
    for name, case in SYSTEMS.items()
    if case.encoders is not None
]


@pytest.mark.parametrize(("name", "text"), [*CASES, ("daim", "stored_regions")])
def test_systems_keep_the_laws(name: str, text: str) -> None:
    case = SYSTEMS[name]
    batch = make_batch(case)
    features = torch.randn(*batch.texts.ids.shape, 6) * batch.texts.mask[..., None]
    batch = replace(batch, texts=replace(batch.texts, features=features))
    make, pads = partial(case.make, text=text), case.images != "four"
    check_matcher(make, batch, processes=2 if name == "daim" else 1, pads_regions=pads)
