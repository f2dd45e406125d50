from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from itmkit.checks import InputError
from itmkit.configs import config_names, config_path, describe, load_config, merge
from itmkit.configs.agreement import completed
from itmkit.data import ImageTextData
from itmkit.systems import Matcher

SNAPSHOTS = json.loads((Path(__file__).parent / "snapshots.json").read_text())
DATASETS = ("shapes", "precomp", "karpathy", "f30k", "coco")


def test_every_name_has_its_file() -> None:
    names = config_names()
    assert "mate/shapes" in names
    assert not [name for name in names if name.startswith("parts")]
    for name in names:
        path = config_path(name)
        assert path.name == f"{name.rpartition('/')[2]}.yaml"
        assert config_path(f"{name}.yaml") == path
        assert {"model", "data", "trainer"} <= load_config(name).keys()
        about, _ = describe(name)
        assert about.endswith(".")
        assert len(name) + len(about) < 130


def test_what_was_measured_is_what_its_page_says() -> None:
    measured = [text for _, text in map(describe, config_names()) if text]
    assert measured
    for text in measured:
        page = re.search(r"\((docs/\w+\.md)\)", text)
        assert page, text
        said = (Path(__file__).parents[2] / page[1]).read_text(encoding="utf-8")
        for number in re.findall(r"rSum [\d.]+|[\d.]+ minutes", text):
            assert number.removeprefix("rSum ") in said, (text, number)


def test_a_class_brings_its_own_arguments() -> None:
    adam = {"class_path": "Adam", "init_args": {"lr": 0.1, "betas": {"a": 1}}}
    below = {"model": {"class_path": "M", "init_args": {"optimizer": adam, "lrs": {"x": 1}}}}

    def over(optimizer: Any, **rest: Any) -> Any:
        found = merge(below, {"model": {"init_args": {"optimizer": optimizer, **rest}}})
        return found["model"]["init_args"]

    sgd = {"class_path": "SGD", "init_args": {"momentum": 0.9}}
    assert over(sgd)["optimizer"] == sgd
    more = over({"class_path": "Adam", "init_args": {"eps": 1}})["optimizer"]["init_args"]
    assert more == {"lr": 0.1, "betas": {"a": 1}, "eps": 1}
    assert over({"init_args": {"betas": {"b": 2}}})["optimizer"]["init_args"]["betas"] == {"b": 2}
    path = over({"class_path": "torch.optim.Adam", "init_args": {"eps": 1}})["optimizer"]
    assert path == {"class_path": "torch.optim.Adam", "init_args": more}
    again = merge({"loss": path}, {"loss": {"class_path": "Adam", "init_args": {"eps": 2}}})
    assert again == {"loss": {**path, "init_args": {**more, "eps": 2}}}
    other = {"class_path": "mine.Adam"}
    assert merge({"loss": path}, {"loss": other}) == {"loss": other}
    assert over(None, lrs={}) == {"optimizer": None, "lrs": {}}
    assert below["model"]["init_args"]["optimizer"] == adam


def test_a_file_of_a_user_starts_from_others(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("bases: [mate/shapes]\nmodel:\n  init_args: {momentum: 0.5}\n")
    found, base = load_config(own), load_config("mate/shapes")
    assert found["model"]["init_args"] == {**base["model"]["init_args"], "momentum": 0.5}
    assert "bases" not in found


@pytest.mark.parametrize(
    ("own", "place"),
    [
        ({"model": {"triplet_weight": 0.5}}, "model has 'triplet_weight'"),
        ({"data": {"batch_size": 8}}, "data has 'batch_size'"),
        ({"model": {"init_args": {"image_encoder": {"dim": 8}}}}, "image_encoder has 'dim'"),
    ],
)
def test_an_argument_outside_of_init_args(own: dict[str, Any], place: str) -> None:
    with pytest.raises(InputError, match=f"^{place} outside of init_args; expected it inside$"):
        merge(load_config("mate/shapes"), own)


@pytest.mark.parametrize(
    ("bases", "told"),
    [
        ("[OWN]", "is among its own bases"),
        ("mate/shapes", "bases is 'mate/shapes'; expected a list"),
        ("[mate/shpes]", "Did you mean 'mate/shapes'?"),
    ],
)
def test_faulty_bases(bases: str, told: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(f"bases: {bases.replace('OWN', str(own))}\n")
    with pytest.raises((InputError, FileNotFoundError), match=re.escape(told)):
        load_config(own)


def test_a_file_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mate").mkdir()
    own = tmp_path / "mate/shapes.yaml"
    own.touch()
    assert config_path("mate/shapes.yaml") == Path("mate/shapes.yaml")
    assert config_path("mate/shapes").resolve() != own


def test_error_lists_all_names() -> None:
    with pytest.raises(FileNotFoundError) as error:
        config_path("mate/shpes")
    message = str(error.value)
    assert all(name in message for name in config_names())
    assert message.endswith("Did you mean 'mate/shapes'?")
    with pytest.raises(FileNotFoundError, match=r"\)$"):
        config_path("nothing/like/it")


def test_every_system_has_its_datasets() -> None:
    wanted = {f"{system}/{data}" for system in ("mate", "daim", "tvrn") for data in DATASETS}
    assert wanted <= set(config_names())


@pytest.mark.parametrize("name", config_names())
def test_every_value_is_one_that_its_class_takes(name: str) -> None:
    """Parsing checks class paths, the names of options and their types; nothing is built.

    The snapshots are the configurations as they were when each was written out whole.
    """
    parsed = parser().parse_object(completed(load_config(name)))
    assert parsed.model.class_path.startswith("itmkit.systems.")
    if name in SNAPSHOTS:
        assert parsed == parser().parse_object(SNAPSHOTS[name])


@pytest.mark.parametrize("name", ["mate/karpathy", "daim/karpathy", "tvrn/karpathy"])
def test_stored_text_features_take_the_place_of_the_text_model(name: str) -> None:
    stored = {
        "model": {"init_args": {"text_encoder": {"class_path": "itmkit.nn.StoredTokens"}}},
        "data": {"init_args": {"text_features": "features", "tokenizer": None}},
    }
    parsed = parser().parse_object(completed(merge(load_config(name), stored)))
    images, texts = parsed.model.init_args.image_encoder, parsed.model.init_args.text_encoder
    assert texts.class_path == "itmkit.nn.StoredTokens"
    assert texts.init_args.dim == images.init_args.dim
    assert parsed.data.init_args.tokenizer is None
    assert parsed.data.init_args.text_features == "features"


def test_no_snapshot_is_left_out() -> None:
    assert SNAPSHOTS.keys() <= set(config_names())


@cache
def parser() -> ArgumentParser:
    found = ArgumentParser(exit_on_error=False)
    found.add_argument("--seed_everything", type=int)
    found.add_subclass_arguments(Matcher, "model")
    found.add_subclass_arguments(ImageTextData, "data")
    found.add_class_arguments(Trainer, "trainer")
    return found
