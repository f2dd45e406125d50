from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from itmkit.nn.encoders.transformer_levels import TransformerLevels
from itmkit.nn.pooling.feature_discriminability import FeatureDiscriminability

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
}
DISTILBERT = {**BERT, "model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_heads": 2}
ROBERTA = {**BERT, "model_type": "roberta", "pad_token_id": 0}
T5 = {"model_type": "t5", "vocab_size": 20, "d_model": 16, "d_ff": 32, "num_layers": 3}
T5 |= {"num_heads": 2, "d_kv": 8}
CONFIGS = {"bert": BERT, "distilbert": DISTILBERT, "roberta": ROBERTA, "t5": T5}
SPREAD = FeatureDiscriminability(scale=0.5)


def levels(config: dict[str, Any] = BERT, **kwargs: Any) -> TransformerLevels:
    return TransformerLevels(config=config, **{"layers": (1, 2, 3), "dim": 8, **kwargs})


def batch() -> tuple[Tensor, Tensor]:
    mask = torch.arange(6) < torch.tensor([4, 6, 1])[:, None]
    return torch.randint(1, 20, (3, 6)) * mask, mask


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_naive_reference(name: str) -> None:
    """The hidden states of the model itself, one by one."""
    encoder = levels(CONFIGS[name], layers=(0, 2, -1), level_discriminability=SPREAD).eval()
    ids, mask = batch()
    out = encoder.backbone(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    states = (out.hidden_states[0], out.hidden_states[2], out.last_hidden_state)
    assert (encoder.dim, encoder.levels, encoder.vocab_size) == (8, 3, 20)
    for level, (tokens, out_mask) in enumerate(encoder(ids, mask)):
        assert torch.equal(out_mask, mask)
        for i, length in enumerate(mask.sum(1).tolist()):
            hidden = SPREAD(states[level][i : i + 1, :length])
            expected = encoder.projections[level](hidden)[0]
            torch.testing.assert_close(tokens[i, :length], expected, atol=1e-5, rtol=0)
            assert torch.equal(tokens[i, length:], torch.zeros(6 - length, 8))


@torch.no_grad()
def test_block_discriminability_naive_reference() -> None:
    """BERT layer by layer, caption by caption, without padding."""
    encoder = levels(block_discriminability=SPREAD).eval()
    plain = levels().eval()
    assert encoder.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(encoder.state_dict())
    ids, mask = batch()
    out = encoder(ids, mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        hidden = plain.backbone.embeddings(input_ids=ids[i : i + 1, :length])
        for level, layer in enumerate(plain.backbone.encoder.layer):
            hidden = layer(hidden)
            hidden = SPREAD(hidden if isinstance(hidden, Tensor) else hidden[0])
            expected = plain.projections[level](hidden)[0]
            torch.testing.assert_close(out[level][0][i, :length], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_and_neighbours_change_nothing(name: str) -> None:
    encoder = levels(
        CONFIGS[name], block_discriminability=SPREAD, level_discriminability=SPREAD
    ).eval()
    ids, mask = batch()
    out = encoder(ids, mask)
    filled = encoder(ids.masked_fill(~mask, 9), mask)
    for i, length in enumerate(mask.sum(1).tolist()):
        alone = encoder(ids[i : i + 1, :length], mask[i : i + 1, :length])
        for level in range(3):
            tokens = out[level][0][i : i + 1, :length]
            torch.testing.assert_close(tokens, alone[level][0], atol=1e-5, rtol=1e-4)
            if name != "roberta":  # its positions are counted from the ids
                torch.testing.assert_close(filled[level][0][i : i + 1, :length], tokens)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("layers", [(1, 2, 3), (0, 1), (2, -1)])
def test_every_trained_parameter_gets_a_gradient(name: str, layers: tuple[int, ...]) -> None:
    encoder = levels(CONFIGS[name], layers=layers, block_discriminability=SPREAD)
    assert encoder.backbone.training
    torch.cat([tokens for tokens, _ in encoder(*batch())]).square().sum().backward()
    for parameter_name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), parameter_name


def test_caption_without_a_token_is_zero() -> None:
    encoder = levels(block_discriminability=SPREAD, level_discriminability=SPREAD)
    ids = torch.zeros(2, 3, dtype=torch.long)
    out = encoder(ids, torch.tensor([[False] * 3, [True] * 3]))
    assert all(torch.equal(tokens[0], torch.zeros(3, 8)) for tokens, _ in out)
    torch.cat([tokens for tokens, _ in out]).sum().backward()
    for parameter in encoder.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_frozen() -> None:
    encoder = levels(frozen=True, block_discriminability=SPREAD)
    nn.ModuleList([encoder]).train()
    ids, mask = batch()
    first, second = encoder(ids, mask)[0][0], encoder(ids, mask)[0][0]
    assert torch.equal(first, second)  # the model's dropout is off
    first.sum().backward()
    assert not any(module.training for module in encoder.backbone.modules())
    assert not any(p.requires_grad for p in encoder.backbone.parameters())
    assert encoder.projections[0].weight.grad is not None


def test_dropout() -> None:
    encoder = levels(dropout=0.5, frozen=True)
    ids, mask = batch()
    assert not torch.equal(encoder(ids, mask)[0][0], encoder(ids, mask)[0][0])
    encoder.eval()
    assert torch.equal(encoder(ids, mask)[0][0], encoder(ids, mask)[0][0])


def test_deepcopy_has_hooks_of_its_own() -> None:
    encoder = levels(block_discriminability=SPREAD).eval()
    copied = copy.deepcopy(encoder)
    ids, mask = batch()
    expected = encoder(ids, mask)
    for parameter in encoder.parameters():
        nn.init.zeros_(parameter)
    for (tokens, _), (reference, _) in zip(copied(ids, mask), expected, strict=True):
        assert torch.equal(tokens, reference)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool) -> None:
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    encoder = levels({**BERT, **no_dropout}, block_discriminability=SPREAD).train()
    ids, mask = batch()
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            encoder.backbone.gradient_checkpointing_enable({"use_reentrant": reentrant})
        encoder.zero_grad()
        out = encoder(ids, mask)
        encoder(ids[:1], mask[:1])  # another run before the backward
        torch.cat([tokens for tokens, _ in out]).square().sum().backward()
        grads.append([p.grad for p in encoder.parameters() if p.grad is not None])
    for grad, expected in zip(*grads, strict=True):
        torch.testing.assert_close(grad, expected, atol=1e-4, rtol=1e-4)


def test_backbone_called_without_the_encoder() -> None:
    ids, mask = batch()
    encoder = levels(block_discriminability=SPREAD)
    with pytest.raises(RuntimeError, match="call the encoder, not its backbone"):
        encoder.backbone(input_ids=ids, attention_mask=mask.long())


def test_half_precision() -> None:
    encoder = levels(block_discriminability=SPREAD, level_discriminability=SPREAD).eval()
    ids, mask = batch()
    expected = encoder(ids, mask)
    out = encoder.bfloat16()(ids, mask)
    for (tokens, _), (reference, _) in zip(out, expected, strict=True):
        assert tokens.dtype == torch.bfloat16
        torch.testing.assert_close(tokens.float(), reference, atol=0.1, rtol=0.1)


def test_compile() -> None:
    encoder = levels(block_discriminability=SPREAD, level_discriminability=SPREAD).eval()
    compiled = torch.compile(encoder, backend="eager")
    args = batch()
    for (tokens, _), (expected, _) in zip(compiled(*args), encoder(*args), strict=True):
        torch.testing.assert_close(tokens, expected)


def test_state_dict_round_trip() -> None:
    source, target = levels().eval(), levels().eval()
    target.load_state_dict(source.state_dict())
    args = batch()
    for (tokens, _), (expected, _) in zip(target(*args), source(*args), strict=True):
        assert torch.equal(tokens, expected)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"name_or_path": "bert"}, "name_or_path and config are .*; expected exactly one"),
        ({"layers": ()}, r"layers is \(\); expected at least one hidden state"),
        ({"layers": (1, 4)}, r"layers is 4; expected \[-4, 4\) for this model"),
        ({"dim": 0}, "dim is 0; expected 1 or more"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
    ],
)
def test_error(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        levels(**kwargs)


def test_block_discriminability_needs_a_list_of_layers() -> None:
    albert = {**BERT, "model_type": "albert", "embedding_size": 16}
    levels(albert)
    with pytest.raises(
        ValueError, match="of a AlbertModel without a list of its layers, num_hidden_layers=3 long"
    ):
        levels(albert, block_discriminability=SPREAD)


def test_input_error() -> None:
    encoder = levels()
    with pytest.raises(ValueError, match=r"id 25; expected ids in \[0, 20\)"):
        encoder(torch.tensor([[25]]), torch.tensor([[True]]))
    long = torch.ones(1, 13, dtype=torch.long)
    with pytest.raises(ValueError, match=r"ids has 13 tokens a row; expected at most 12"):
        encoder(long, long > 0)


def test_a_module_instead_of_a_name(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModel

    model = AutoModel.from_config(AutoConfig.for_model(**BERT)).eval()
    model.save_pretrained(tmp_path)
    given, named = (TransformerLevels(one, layers=(1, 2), dim=8) for one in (model, tmp_path))
    assert given.backbone is model
    given.load_state_dict(named.state_dict())
    ids = torch.tensor([[1, 2, 3, 0]])
    for one, other in zip(given.eval()(ids, ids > 0), named.eval()(ids, ids > 0), strict=True):
        assert torch.equal(one[0], other[0])
