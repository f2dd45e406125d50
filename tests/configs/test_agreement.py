"""Values that must agree: filled in where one is missing, an error where two differ."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itmkit.checks import InputError
from itmkit.configs import load_config
from itmkit.configs.agreement import (
    accepts,
    class_of,
    completed,
    missing_values,
    value_of,
    with_option,
)


def changed(name: str, **options: Any) -> dict[str, Any]:
    config = load_config(name)
    for option, value in options.items():
        config = with_option(config, option.replace("__", "."), value)
    return config


@pytest.mark.parametrize(
    ("name", "options", "missing"),
    [
        ("mate/karpathy", {"model__views": 3}, {"data.caption_views": 3}),
        ("tvrn/precomp", {"model__image_encoder__dim": 32}, {"model.text_encoder.dim": 32}),
        ("mate/f30k", {"model__image_encoder__dim": 32}, {"model.fusion.dim": 32}),
        ("daim/shapes", {}, {"model.text_encoder.levels": 1}),
        ("daim/shapes", {}, {"model.text_encoder.encoder.dim": 128}),
        ("mate/shapes", {"model__image_encoder__image_size": 96}, {"data.dataset.image_size": 96}),
        (
            "mate/karpathy_pixels",
            {"data__dataset__image_size": 64},
            {"model.image_encoder.image_size": 64},
        ),
        (
            "mate/karpathy_pixels",
            {"data__tokenizer": {"class_path": "itmkit.data.TransformersTokenizer"}},
            {},
        ),
        (
            "mate/shapes",
            {"model__triplet": {"class_path": "itmkit.losses.GroupTripletLoss"}},
            {"model.triplet.group_size": 2},
        ),
    ],
)
def test_a_missing_value_is_filled_in(
    name: str, options: dict[str, Any], missing: dict[str, Any]
) -> None:
    config = changed(name, **options)
    assert missing.items() <= missing_values(config).items()
    whole = completed(config)
    assert all(value_of(whole, option) == value for option, value in missing.items())
    assert missing_values(whole) == {}


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        (
            "mate/karpathy",
            {"data__tokenizer__name_or_path": "words"},
            "model.text_encoder.name_or_path is 'sentence-transformers/all-MiniLM-L6-v2' and "
            "data.tokenizer.name_or_path 'words'; expected the same value",
        ),
        ("mate/shapes", {"data__caption_views": 3}, "model.views is 2 and data.caption_views 3"),
        (
            "daim/f30k",
            {"data__dataset__image_size": 192},
            "model.image_encoder.image_size is 224 and data.dataset.image_size 192",
        ),
        (
            "mate/f30k",
            {"model__fusion__dim": 512},
            "model.image_encoder.dim is 1024 and model.fusion.dim 512",
        ),
        (
            "daim/f30k",
            {"model__text_encoder__layers": [1, 2]},
            "the length of model.image_encoder.out_indices is 3 and the length of "
            "model.text_encoder.layers 2",
        ),
    ],
)
def test_two_values_that_differ_are_an_error(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(told)}"):
        completed(changed(name, **options))


def test_null_is_a_value_that_stays() -> None:
    config = changed("mate/karpathy", model__text_encoder__dim=None, data__tokenizer=None)
    assert missing_values(config) == {"data.caption_views": 1}


def test_a_config_takes_the_place_of_a_name() -> None:
    config = with_option(load_config("mate/karpathy"), "model.text_encoder.name_or_path", None)
    config = with_option(config, "model.text_encoder.config", {"model_type": "bert"})
    tokenizer = {"class_path": "itmkit.data.TransformersTokenizer"}
    tokenizer["init_args"] = {"name_or_path": "words"}  # type: ignore[assignment]
    assert "model.text_encoder.name_or_path" not in missing_values(
        with_option(config, "data.tokenizer", tokenizer)
    )


@pytest.mark.parametrize("option", ["data.dataset.root", "data.dataset.features"])
def test_the_width_of_stored_features(option: str, tmp_path: Path) -> None:
    np.save(tmp_path / "train_ims.npy", np.zeros((3, 2, 40), "float16"))
    name = "mate/precomp" if option.endswith("root") else "mate/karpathy"
    config = with_option(load_config(name), option, str(tmp_path))
    own = value_of(config, "model.image_encoder.in_dim")
    told = f"model.image_encoder.in_dim is {own} and the width of {option} 40"
    with pytest.raises(InputError, match=told):
        missing_values(config)
    del config["model"]["init_args"]["image_encoder"]["init_args"]["in_dim"]
    assert missing_values(config)["model.image_encoder.in_dim"] == 40


def test_the_width_of_features_that_are_not_there_or_broken(tmp_path: Path) -> None:
    config = with_option(load_config("mate/precomp"), "data.dataset.root", str(tmp_path))
    before = missing_values(config)
    (tmp_path / "train_ims.npy").write_bytes(b"no array")
    assert missing_values(config) == before


def test_a_class_that_is_changed_keeps_what_it_takes_too() -> None:
    config = with_option(load_config("mate/karpathy"), "model.text_encoder", "itmkit.nn.BiGRU")
    assert value_of(config, "model.text_encoder.dropout") == 0.1
    assert value_of(config, "model.text_encoder.name_or_path") is None
    assert missing_values(config) == {"model.text_encoder.dim": 256, "data.caption_views": 1}
    assert class_of(config, "model.text_encoder") == "itmkit.nn.BiGRU"


def test_options_with_and_without_init_args_are_the_same() -> None:
    config = load_config("mate/shapes")
    short = with_option(config, "model.image_encoder.projection.dim", 5)
    long = with_option(
        config, "model.init_args.image_encoder.init_args.projection.init_args.dim", 5
    )
    assert short == long
    assert value_of(short, "model.image_encoder.projection.dim") == 5
    assert value_of(config, "model.image_encoder.projection.dim") == 128


def test_a_class_by_its_name_alone_and_one_that_is_unknown() -> None:
    assert accepts("BiGRU", "embed_dim")
    assert accepts("itmkit.systems.MATE", "optimizer")  # through **kwargs
    assert not accepts("BiGRU", "layers")
    assert not accepts("nothing.like.This", "layers")


def test_width_of_a_text_model_that_is_not_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, CLIPConfig

    def fetched(name: str, *, token: str | None, trust_remote_code: bool) -> CLIPConfig:
        assert (name, token, trust_remote_code) == ("group/clip", None, False)
        return CLIPConfig(text_config={"hidden_size": 40}, vision_config={"hidden_size": 24})

    monkeypatch.setattr(AutoConfig, "from_pretrained", fetched)
    monkeypatch.setattr("itmkit.pretrained._reached", [True])
    monkeypatch.setattr("itmkit.pretrained._announce", pytest.fail)
    config = changed("mate/photos", data__text_model="group/clip")
    assert missing_values(config)["model.text_encoder.in_dim"] == 40


def test_options_of_a_list_are_those_of_its_last_item() -> None:
    config: dict[str, Any] = {"trainer": {"callbacks": [{"class_path": "first.Callback"}]}}
    config = with_option(config, "trainer.callbacks+", "second.Callback")
    config = with_option(config, "trainer.callbacks.until", 3)
    assert config["trainer"]["callbacks"] == [
        {"class_path": "first.Callback"},
        {"class_path": "second.Callback", "init_args": {"until": 3}},
    ]
    made = with_option({}, "trainer.callbacks+", ["first.Callback"])
    assert made == {"trainer": {"callbacks": ["first.Callback"]}}
