"""What short options stand for, by the classes of a configuration."""

from __future__ import annotations

import re
from typing import Any

import pytest

from itmkit.checks import InputError
from itmkit.configs import load_config
from itmkit.configs.agreement import completed
from itmkit.configs.short_options import SHORT_OPTIONS, expanded

NAME = "model.text_encoder.name_or_path"


@pytest.mark.parametrize(
    ("config", "given", "full"),
    [
        ("mate/precomp", {"features": "F"}, {"data.dataset.root": "F"}),
        ("tvrn/karpathy", {"features": "F"}, {"data.dataset.features": "F"}),
        (
            "daim/f30k",
            {"photos": "P", "captions": "C"},
            {"data.dataset.images": "P", "data.dataset.annotations": "C"},
        ),
        (
            "daim/f30k",
            {"image_model": "M", "image_checkpoint": "F", "image_checkpoint_by_order": True},
            {
                "model.image_encoder.model_name": "M",
                "model.image_encoder.checkpoint": "F",
                "model.image_encoder.checkpoint_by_order": True,
            },
        ),
        ("mate/karpathy", {"text_model": "T"}, {NAME: "T"}),
        ("daim/f30k", {"text_checkpoint": "T"}, {NAME: "T"}),
        ("mate/karpathy", {"text_model": "bigru"}, {"model.text_encoder": "itmkit.nn.BiGRU"}),
        ("mate/shapes", {"text_model": "bigru"}, {}),
        (
            "mate/shapes",
            {"text_model": "T"},
            {"model.text_encoder": "itmkit.nn.TransformerText", NAME: "T"},
        ),
        (
            "daim/shapes",
            {"text_model": "T"},
            {
                "model.text_encoder.encoder": "itmkit.nn.TransformerText",
                "model.text_encoder.encoder.name_or_path": "T",
            },
        ),
    ],
)
def test_full_options(config: str, given: dict[str, Any], full: dict[str, Any]) -> None:
    assert expanded(given, load_config(config)) == full


def test_the_tokenizer_of_a_run_follows_the_text_model() -> None:
    run = completed(load_config("mate/karpathy"))
    assert expanded({"text_model": "T"}, run) == {NAME: "T", "data.tokenizer.name_or_path": "T"}
    words = expanded({"text_model": "bigru"}, run)
    assert words == {"model.text_encoder": "itmkit.nn.BiGRU", "data.tokenizer": None}


@pytest.mark.parametrize(
    ("config", "given", "told"),
    [
        (
            "mate/precomp",
            {"photos": "P"},
            "photos is 'P', but itmkit.data.PrecompDataset takes none, as data.dataset; expected",
        ),
        ("mate/karpathy", {"photos": "P"}, "photos is 'P', but features are read instead"),
        (
            "mate/karpathy",
            {"image_model": "M"},
            "image_model is 'M', but itmkit.nn.RegionProjection takes none",
        ),
        ("mate/karpathy_pixels", {"features": "F"}, "TimmGrid, which reads pixels"),
        ("daim/f30k", {"text_model": "bigru"}, "text_model is 'bigru', which has one level"),
        (
            "mate/karpathy",
            {"text_model": "T", "text_checkpoint": "U"},
            "text_model is 'T' and text_checkpoint is 'U'; expected one of them",
        ),
    ],
)
def test_what_a_configuration_has_nothing_for(
    config: str, given: dict[str, Any], told: str
) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        expanded(given, load_config(config))


@pytest.mark.parametrize("name", SHORT_OPTIONS)
def test_without_a_configuration(name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is 'x'"):
        expanded({name: "x"}, {})
