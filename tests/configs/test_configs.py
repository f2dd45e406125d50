from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

from itmkit.configs import config_names, config_path
from itmkit.data import ImageTextData
from itmkit.systems import Matcher

DATASETS = ("shapes", "precomp", "karpathy", "f30k", "coco")


def test_every_name_has_its_file() -> None:
    names = config_names()
    assert "mate/shapes" in names
    for name in names:
        path = config_path(name)
        assert path.name == f"{name.rpartition('/')[2]}.yaml"
        assert config_path(f"{name}.yaml") == path
        assert {"model", "data", "trainer"} <= yaml.safe_load(path.read_text()).keys()


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
def test_every_value_is_one_that_its_class_takes(name: str, tmp_path: Path) -> None:
    """Parsing checks class paths, the names of options and their types; nothing is built."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    parser.add_subclass_arguments(Matcher, "model")
    parser.add_subclass_arguments(ImageTextData, "data")
    parser.add_class_arguments(Trainer, "trainer")
    assert parser.parse_path(config_path(name)).model.class_path.startswith("itmkit.systems.")
