from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from itmkit.checks import InputError
from itmkit.nn import TransformerText

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
}


def batch() -> tuple[Tensor, Tensor]:
    mask = torch.arange(6) < torch.tensor([4, 6, 1])[:, None]
    return torch.randint(1, 20, (3, 6)) * mask, mask


def saved_bert(folder: Path) -> BertModel:
    config = BertConfig(**{key: value for key, value in BERT.items() if key != "model_type"})
    model = BertModel(config).eval()
    model.save_pretrained(folder)
    return model


def test_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = saved_bert(tmp_path)
    capfd.readouterr()
    encoder = TransformerText(tmp_path).eval()
    assert capfd.readouterr() == ("", "")
    ids, mask = batch()
    expected = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    tokens, out_mask = encoder(ids, mask)
    assert encoder.dim == 16
    assert torch.equal(out_mask, mask)
    torch.testing.assert_close(tokens[mask], expected[mask], atol=1e-6, rtol=0)
    assert torch.equal(tokens[~mask], torch.zeros(int((~mask).sum()), 16))


def test_half_precision_weights_load_as_fp32(tmp_path: Path) -> None:
    saved_bert(tmp_path).half().save_pretrained(tmp_path)
    encoder = TransformerText(tmp_path)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


@pytest.mark.parametrize("layer", [0, 1, 2, -1, -2])
def test_layer(tmp_path: Path, layer: int) -> None:
    model = saved_bert(tmp_path)
    encoder = TransformerText(tmp_path, layer=layer).eval()
    ids, mask = batch()
    states = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)
    expected = states.hidden_states[layer]
    torch.testing.assert_close(encoder(ids, mask)[0][mask], expected[mask], atol=1e-6, rtol=0)


@pytest.mark.parametrize("layer", [1, -1])
def test_every_trained_parameter_gets_a_gradient(layer: int) -> None:
    encoder = TransformerText(config=BERT, dim=8, layer=layer)
    assert encoder.backbone.training
    encoder(*batch())[0].square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad]
    assert not any("pooler" in name for name in trained)
    assert any("layer.0" in name for name in trained)


def test_config_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BERT), encoding="utf-8")
    encoder = TransformerText(config=tmp_path / "config.json", dim=8)
    assert encoder(*batch())[0].shape == (3, 6, 8)


@pytest.mark.parametrize(
    "config",
    [
        {**BERT, "model_type": "distilbert", "dim": 16, "hidden_dim": 32, "n_heads": 2},
        {**BERT, "model_type": "roberta", "pad_token_id": 0},
        {"model_type": "t5", "vocab_size": 20, "d_model": 16, "d_ff": 32, "num_layers": 1}
        | {"num_heads": 2, "d_kv": 8},
    ],
    ids=lambda config: config["model_type"],
)
def test_other_models(config: dict[str, Any]) -> None:
    encoder = TransformerText(config=config, dim=8).eval()
    ids, mask = batch()
    tokens = encoder(ids, mask)[0]
    alone = encoder(ids[:1, :4], mask[:1, :4])[0]
    torch.testing.assert_close(tokens[:1, :4], alone, atol=1e-5, rtol=0)


SMALL: dict[str, Any] = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 12,
}
HALF = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = {**HALF, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
SEQUENCE = {
    "vocab_size": 30,
    "d_model": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 12,
}
#: with the most tokens that a caption may have
KINDS: dict[str, tuple[dict[str, Any], int | None]] = {
    "clip": ({"text_config": {**SMALL, "eos_token_id": 2}, "vision_config": VISION}, 12),
    "siglip": ({"text_config": SMALL, "vision_config": VISION}, 12),
    "clip_text_model": ({**SMALL, "eos_token_id": 2}, 12),
    "xlnet": ({"vocab_size": 30, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}, None),
    "roberta": ({**SMALL, "max_position_embeddings": 14}, 12),
    "mpnet": ({**SMALL, "max_position_embeddings": 14}, 12),
    "modernbert": ({**SMALL, "pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2}, 12),
    "distilbert": (
        {"vocab_size": 30, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
        | {"max_position_embeddings": 12},
        12,
    ),
    "gpt2": ({"vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 12}, 12),
    "llama": (SMALL, 12),
    "t5": (
        {"vocab_size": 30, "d_model": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2, "d_kv": 8},
        None,
    ),
    "bart": (SEQUENCE, 12),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_text_model(kind: str, tmp_path: Path) -> None:
    """From a config of any form, its saved weights or a module, with as many tokens as it takes."""
    from transformers import AutoConfig, AutoModel

    config, most = KINDS[kind]
    model = AutoModel.from_config(AutoConfig.for_model(kind, **config)).eval()
    model.save_pretrained(tmp_path)
    TransformerText(config={"model_type": kind, **config}, dim=8)
    before = model.config.to_dict()
    from_object = TransformerText(config=model.config).backbone.state_dict()
    assert model.config.to_dict() == before
    assert from_object.keys() == TransformerText(tmp_path).backbone.state_dict().keys()
    saved, given = TransformerText(tmp_path).eval(), TransformerText(model).eval()
    assert (saved.vocab_size, saved.max_length, saved.dim) == (30, most, 16)
    length = most or 20
    mask = torch.arange(length) < torch.tensor([length, 3])[:, None]
    ids = torch.randint(3, 30, (2, length)).masked_fill(~mask, int(model_pad(model)))
    tokens = saved(ids, mask)[0]
    torch.testing.assert_close(tokens, given(ids, mask)[0])
    alone = saved(ids[1:, :3], mask[1:, :3])[0]
    torch.testing.assert_close(tokens[1:, :3], alone, atol=1e-5, rtol=0)
    if most is not None:
        long = torch.full((1, most + 1), 3)
        with pytest.raises(
            InputError, match=f"ids has {most + 1} tokens a row; expected at most {most}"
        ):
            saved(long, long > 0)


def model_pad(model: Any) -> int:
    config = getattr(model.config, "text_config", None) or model.config
    return getattr(config, "pad_token_id", None) or 0


def test_weights_of_a_whole_clip_are_those_of_its_text_model(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    config = KINDS["clip"][0]
    model = CLIPModel(CLIPConfig(**config)).eval()
    model.save_pretrained(tmp_path)
    encoder = TransformerText(tmp_path).eval()
    ids, mask = batch()
    expected = model.text_model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    torch.testing.assert_close(encoder(ids, mask)[0][mask], expected[mask])
    assert not any("vision" in name for name, _ in encoder.named_parameters())


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("vit", VISION),
        ("whisper", {**SEQUENCE, "pad_token_id": 0, "decoder_start_token_id": 1}),
    ],
)
def test_error_of_a_model_that_is_not_of_text(kind: str, config: dict[str, Any]) -> None:
    config = {**config, "model_type": kind}
    config |= {"bos_token_id": 1, "eos_token_id": 2} if kind == "whisper" else {}
    with pytest.raises(InputError, match=r"(ViT|Whisper)\w* is no model of text"):
        TransformerText(config=config)


def test_a_module_keeps_what_it_has_frozen() -> None:
    model = BertModel(BertConfig(**{k: v for k, v in BERT.items() if k != "model_type"}))
    model.embeddings.requires_grad_(False)
    encoder = TransformerText(model, dim=8)
    assert encoder.backbone is model
    assert not any(p.requires_grad for p in model.embeddings.parameters())
    assert any(p.requires_grad for p in model.encoder.parameters())
    assert not any(p.requires_grad for p in TransformerText(model, frozen=True).parameters())
    assert not any(
        p.requires_grad for p in TransformerText(model.requires_grad_(False)).parameters()
    )
    with pytest.raises(InputError, match="Linear is no model of text"):
        TransformerText(torch.nn.Linear(2, 2))


def test_a_module_with_a_head_is_its_body() -> None:
    from transformers import BertForMaskedLM, T5Config, T5ForConditionalGeneration

    model = BertForMaskedLM(BertConfig(**{k: v for k, v in BERT.items() if k != "model_type"}))
    assert TransformerText(model).backbone is model.bert
    t5 = T5ForConditionalGeneration(T5Config(**KINDS["t5"][0]))
    assert TransformerText(t5).backbone is t5.get_encoder()


def test_padding_and_neighbours_change_nothing() -> None:
    encoder = TransformerText(config=BERT, dim=8).eval()
    ids, mask = batch()
    tokens = encoder(ids, mask)[0]
    for i in range(3):
        n = int(mask[i].sum())
        alone = encoder(ids[i : i + 1, :n], mask[i : i + 1, :n])[0]
        torch.testing.assert_close(tokens[i : i + 1, :n], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder(ids.masked_fill(~mask, 9), mask)[0], tokens)


def test_caption_without_a_token_is_zero() -> None:
    encoder = TransformerText(config=BERT, dim=8)
    ids = torch.zeros(2, 3, dtype=torch.long)
    tokens = encoder(ids, torch.tensor([[False] * 3, [True] * 3]))[0]
    assert torch.equal(tokens[0], torch.zeros(3, 8))
    tokens.sum().backward()
    for parameter in encoder.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_frozen() -> None:
    encoder = TransformerText(config=BERT, dim=8, frozen=True)
    torch.nn.ModuleList([encoder]).train()
    ids, mask = batch()
    first, second = encoder(ids, mask)[0], encoder(ids, mask)[0]
    assert torch.equal(first, second)  # the model's dropout is off
    first.sum().backward()
    assert not any(module.training for module in encoder.backbone.modules())
    assert all(p.grad is None and not p.requires_grad for p in encoder.backbone.parameters())
    assert all(p.grad is not None for p in encoder.projection.parameters())


def test_half_precision() -> None:
    encoder = TransformerText(config=BERT, dim=8).eval()
    ids, mask = batch()
    expected = encoder(ids, mask)[0]
    tokens = encoder.bfloat16()(ids, mask)[0]
    assert tokens.dtype == torch.bfloat16
    torch.testing.assert_close(tokens.float(), expected, atol=0.1, rtol=0.1)


def test_compile() -> None:
    encoder = TransformerText(config=BERT, dim=8).eval()
    compiled = torch.compile(encoder, backend="eager")
    torch.testing.assert_close(compiled(*(args := batch()))[0], encoder(*args)[0])


def test_state_dict_round_trip() -> None:
    source = TransformerText(config=BERT, dim=8).eval()
    target = TransformerText(config=BERT, dim=8).eval()
    target.load_state_dict(source.state_dict())
    ids, mask = batch()
    assert torch.equal(source(ids, mask)[0], target(ids, mask)[0])


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "name_or_path and config are .*; expected exactly one"),
        (
            {"name_or_path": "bert", "config": BERT},
            "name_or_path and config are .*; expected exactly one",
        ),
        ({"config": {"vocab_size": 20}}, "config is .*; expected a mapping with a model_type"),
        ({"config": {**BERT, "model_type": "bart_simpson"}}, "model_type .*'bart_simpson'"),
        ({"config": BERT, "dim": 0}, "dim is 0; expected 1 or more"),
        ({"config": BERT, "layer": 3}, r"layer is 3; expected \[-3, 3\) for this model"),
        ({"config": BERT, "layer": -4}, r"layer is -4; expected \[-3, 3\) for this model"),
        ({"config": BERT, "dropout": 1.0}, r"dropout is 1.0; expected a number in \[0, 1\)"),
    ],
)
def test_error(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerText(**kwargs)


def test_input_error() -> None:
    encoder = TransformerText(config=BERT)
    with pytest.raises(ValueError, match=r"id 25; expected ids in \[0, 20\)"):
        encoder(torch.tensor([[25]]), torch.tensor([[True]]))
    long = torch.ones(1, 13, dtype=torch.long)
    with pytest.raises(ValueError, match=r"ids has 13 tokens a row; expected at most 12"):
        encoder(long, long > 0)


def test_tokens_are_dropped_in_training_alone() -> None:
    torch.manual_seed(0)
    text = TransformerText(config=BERT, dim=8, token_drop=0.9)
    ids, mask = torch.randint(1, 20, (4, 12)), torch.ones(4, 12, dtype=torch.bool)
    kept = text(ids, mask).mask
    assert kept.any(1).all()
    assert not kept.all()
    whole = text.eval()(ids, mask).mask
    assert whole is None or whole.all()
