from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from itmkit.checks import InputError
from itmkit.nn import RegionProjection, StoredTokens
from itmkit.nn.layers.token_dropout import TokenDropout


@pytest.mark.parametrize("shared", [True, False])
def test_channels_are_zeroed_at_the_given_rate(shared: bool) -> None:
    torch.manual_seed(0)
    out = TokenDropout(0.25, shared=shared)(torch.ones(50, 4, 200))
    kept = out != 0
    torch.testing.assert_close(out[kept], torch.full_like(out[kept], 1 / 0.75))
    assert abs(float(kept.double().mean()) - 0.75) < 0.02
    alike = (kept == kept[:, :1]).all(dim=1).double().mean()  # channels that all tokens share
    assert float(alike) == 1.0 if shared else float(alike) < 0.4
    assert not torch.equal(kept[0], kept[1])  # every item for itself


@pytest.mark.parametrize(("p", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_done_without_a_rate_or_out_of_training(p: float, training: bool) -> None:
    tokens = torch.randn(2, 3, 4)
    assert torch.equal(TokenDropout(p, shared=True).train(training)(tokens), tokens)


@pytest.mark.parametrize("encoder", [RegionProjection, StoredTokens])
def test_encoders_share_it_among_the_tokens_of_an_item(encoder: Callable[..., nn.Module]) -> None:
    built = encoder(6, 4, dropout=0.5, shared_dropout=True)
    tokens, _ = built(torch.randn(3, 1, 6).expand(3, 5, 6))
    torch.testing.assert_close(tokens, tokens[:, :1].expand_as(tokens))
    with pytest.raises(InputError, match="dropout"):
        encoder(6, 4, dropout=1.0)
