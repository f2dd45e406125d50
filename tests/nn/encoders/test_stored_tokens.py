from __future__ import annotations

import pytest
import torch
from masked_tokens import assert_padding_may_hold_anything, gradients, lengths_mask
from torch import Tensor

from itmkit.nn import StoredTokens, TransformerLevels, TransformerText
from itmkit.testing import check_encoder

BERT = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
MASK = lengths_mask([5, 2, 1], 5)
IDS = torch.arange(15).view(3, 5).masked_fill(~MASK, 0)


def test_it_is_the_end_of_a_frozen_text_model() -> None:
    live = TransformerText(config=BERT, dim=6, frozen=True, dropout=0.3)
    stored = StoredTokens(8, 6, dropout=0.3)
    stored.projections[0].load_state_dict(live.projection.state_dict())
    (features,) = live.hidden_states(IDS, MASK)
    for training in (True, False):
        results = []
        for encoder, inputs in ((live, IDS), (stored, features)):
            torch.manual_seed(0)
            results.append(encoder.train(training)(inputs, MASK))
        assert torch.equal(results[0].tokens, results[1].tokens)
        assert torch.equal(results[1].mask, MASK)


def test_several_levels_are_those_of_a_frozen_text_model() -> None:
    live = TransformerLevels(config=BERT, layers=(1, 2), dim=6, frozen=True)
    stored = StoredTokens(8, 6, levels=2)
    stored.projections.load_state_dict(live.projections.state_dict())
    features = torch.cat(live.hidden_states(IDS, MASK), dim=-1)
    assert (stored.levels, stored.dim) == (2, 6)
    for found, expected in zip(stored(features, MASK), live(IDS, MASK), strict=True):
        torch.testing.assert_close(found.tokens, expected.tokens)


@pytest.mark.parametrize("levels", [None, 2])
def test_the_contract_of_encoders(levels: int | None) -> None:
    check_encoder(
        lambda: StoredTokens(4, 6, levels=levels), torch.randn(3, 5, 4 * (levels or 1)), MASK
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_padding_may_hold_anything(value: float) -> None:
    encoder = StoredTokens(4, 6, levels=2)

    def run(features: Tensor) -> list[Tensor]:
        return gradients(encoder, features, MASK, read=lambda out: torch.cat([t for t, _ in out]))

    assert_padding_may_hold_anything(run, value, (torch.randn(3, 5, 8), MASK))


def test_unprojected_tokens_are_the_features() -> None:
    features = torch.randn(3, 5, 8)
    encoder = StoredTokens(8)
    assert encoder.dim == 8
    assert torch.equal(encoder(features).tokens, features)
    assert encoder(features).mask is None


@pytest.mark.parametrize("masked", [True, False])
def test_tokens_are_dropped_in_training_and_one_stays(masked: bool) -> None:
    encoder = StoredTokens(8, token_drop=0.5)
    features, mask = torch.ones(2000, 5, 8), MASK[torch.arange(2000) % 3] if masked else None
    torch.manual_seed(0)
    tokens, kept = encoder(features, mask)
    assert kept is not None
    assert torch.equal(tokens[..., 0] == 1, kept)
    counts = kept.sum(1)
    assert int(counts.min()) == 1
    if mask is not None:
        assert not bool((kept & ~mask).any())
        assert bool((counts[mask.sum(1) == 1] == 1).all())
    full = counts[:: 3 if masked else 1].double()  # of five tokens, at least one
    expected = 2.5 + 0.5**5
    assert abs(float(full.mean()) - expected) < 0.15
    assert torch.equal(encoder.eval()(features, mask).tokens, features * _ones(mask, features))


def _ones(mask: torch.Tensor | None, features: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(features[..., :1]) if mask is None else mask[..., None].float()


def test_a_caption_without_a_token_stays_so() -> None:
    mask = MASK & torch.tensor([[True], [False], [True]])
    tokens, kept = StoredTokens(8, token_drop=0.5)(torch.ones(3, 5, 8), mask)
    assert kept is not None
    assert not bool(kept[1].any())
    assert not bool(tokens[1].any())


def test_error_of_sizes_and_of_ids() -> None:
    for arguments, told in (
        ({"in_dim": 0}, "in_dim is 0"),
        ({"levels": 0}, "levels is 0"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number in"),
        ({"token_drop": -0.1}, "token_drop is -0.1"),
    ):
        with pytest.raises(ValueError, match=told):
            StoredTokens(**arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"features is a torch.int64 tensor; .* text_features of"):
        StoredTokens(8)(IDS, MASK)
    with pytest.raises(
        ValueError, match=r"features has the shape .*; expected \(batch, tokens, 16\)"
    ):
        StoredTokens(8, levels=2)(torch.randn(3, 5, 8), MASK)
