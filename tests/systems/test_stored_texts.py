"""Systems on texts that come as stored features of their tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from systems import DIM, IMAGE, IMAGE_LEVELS, SYSTEMS, make_batch

from itmkit.losses import AdaptiveMarginTripletLoss
from itmkit.nn import RegionProjection, StoredTokens
from itmkit.systems import DAIM, MATE, TVRN, Matcher
from itmkit.testing import check_matcher

TOKENS = partial(StoredTokens, 6, DIM)


def _daim(levels: bool) -> DAIM:
    loss = AdaptiveMarginTripletLoss(margin=0.4, min_rows=2)
    if levels:
        return DAIM(IMAGE_LEVELS["region_levels"](), StoredTokens(3, DIM, levels=2), loss=loss)
    return DAIM(IMAGE["regions"](), RegionProjection(6, DIM, hidden_dim=8), loss=loss)


CASES: dict[str, tuple[str, Callable[[], Matcher]]] = {
    "mate": ("mate", lambda: MATE(IMAGE["regions"](), TOKENS(), token_drop=0.0, warmup=0)),
    "daim": ("daim", lambda: _daim(False)),
    "daim_levels": ("daim", lambda: _daim(True)),
    "tvrn": ("tvrn_sgr", lambda: TVRN(IMAGE["regions"](), TOKENS(), similarity_dim=8)),
}


@pytest.mark.parametrize("name", CASES)
def test_systems_keep_the_laws(name: str) -> None:
    like, make = CASES[name]
    batch = make_batch(SYSTEMS[like])
    features = torch.randn(*batch.texts.ids.shape, 6) * batch.texts.mask[..., None]
    check_matcher(make, replace(batch, texts=replace(batch.texts, features=features)))
