"""A model from its checkpoint alone, and what a checkpoint may not do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_matcher import TinyMatcher
from tiny_runs import SYSTEMS

from itmkit import __version__
from itmkit.checks import InputError
from itmkit.systems import DAIM, MATE, TVRN, Matcher
from itmkit.systems.build import build, check_class_paths

SIDES = ("image_encoder", "text_encoder")


def checkpoint(folder: Path, class_path: str, **init_args: Any) -> Path:
    """The checkpoint of a model that a configuration described, with weights of its own."""
    section = {"class_path": class_path, "init_args": init_args}
    model = build({"model": section}, {"model": Matcher}, source="test")["model"]
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.model_config = section
    content: dict[str, Any] = {"state_dict": model.state_dict()}
    model.on_save_checkpoint(content)
    path = folder / "model.ckpt"
    torch.save(content, path)
    return path


@pytest.mark.parametrize("system", [MATE, DAIM, TVRN])
def test_load_from_checkpoint_needs_no_arguments(system: type[Matcher], tmp_path: Path) -> None:
    path = checkpoint(tmp_path, f"itmkit.systems.{system.__name__}", **SYSTEMS[system.__name__])
    state = torch.load(path, weights_only=True)["state_dict"]
    for loader in (system, Matcher):
        model = loader.load_from_checkpoint(path)
        assert type(model) is system
        assert model.state_dict().keys() == state.keys()
        assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())


def test_arguments_replace_those_of_the_configuration(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "itmkit.systems.MATE", **SYSTEMS["MATE"])
    model = MATE.load_from_checkpoint(path, rerank_top_k=7)
    assert (model.rerank_top_k, model.momentum) == (7, 0.9)
    with open(path, "rb") as file:
        assert MATE.load_from_checkpoint(file).rerank_top_k == 0


def test_a_checkpoint_of_a_loaded_model_holds_its_own_arguments_and_class(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "itmkit.systems.MATE", **SYSTEMS["MATE"])

    def again(model: Matcher, kind: type[Matcher] = Matcher, **arguments: Any) -> Any:
        content: dict[str, Any] = {"state_dict": model.state_dict()}
        content["pytorch-lightning_version"] = "2.6.6"
        model.on_save_checkpoint(content)
        torch.save(content, tmp_path / "again.ckpt")
        return kind.load_from_checkpoint(tmp_path / "again.ckpt", **arguments)

    assert again(MATE.load_from_checkpoint(path, momentum=0.5)).momentum == 0.5
    assert type(again(OurMATE.load_from_checkpoint(path))) is OurMATE
    assert "momentum" in SYSTEMS["MATE"]
    encoders = {name: getattr(again(MATE.load_from_checkpoint(path)), name) for name in SIDES}
    built = MATE.load_from_checkpoint(path, **encoders)
    assert built.model_config is None  # as of a model that was built in code
    parts = {"fusion": built.fusion, "hubness_correction": built.hubness_correction}
    assert again(built, MATE, **encoders, **parts, queue_size=20).momentum == 0.995


def test_a_model_built_in_code_is_loaded_as_lightning_does(tmp_path: Path) -> None:
    model = TinyMatcher(dim=5)
    content: dict[str, Any] = {
        "state_dict": model.state_dict(),
        "pytorch-lightning_version": "2.6.6",
    }
    model.on_save_checkpoint(content)
    torch.save(content, tmp_path / "model.ckpt")
    loaded = TinyMatcher.load_from_checkpoint(tmp_path / "model.ckpt", dim=5)
    assert loaded.image.weight.equal(model.image.weight)


class OurMATE(MATE):
    """A system that derives from one of ours."""


def test_subclass_is_built_from_the_configuration_of_its_parent(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "itmkit.systems.MATE", **SYSTEMS["MATE"])
    loaded = OurMATE.load_from_checkpoint(path)
    assert type(loaded) is OurMATE
    state = torch.load(path, weights_only=True)["state_dict"]
    assert all(tensor.equal(state[name]) for name, tensor in loaded.state_dict().items())


def test_error_of_another_system(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, "itmkit.systems.DAIM", **SYSTEMS["DAIM"])
    with pytest.raises(InputError, match="is of the system DAIM; expected MATE"):
        MATE.load_from_checkpoint(path)


@pytest.mark.parametrize(
    ("written", "note"),
    [
        ("0.0.1", "it was written by itmkit 0.0.1 and this is itmkit "),
        (None, "it was written by itmkit of an unknown version and this is itmkit "),
        (__version__, None),
    ],
)
def test_error_of_a_checkpoint_of_another_version(
    written: str | None, note: str | None, tmp_path: Path
) -> None:
    path = checkpoint(tmp_path, "itmkit.systems.DAIM", **SYSTEMS["DAIM"])
    content = torch.load(path, weights_only=True)
    assert content["itmkit_version"] == __version__
    tensors = content["state_dict"]
    old = next(name for name in tensors if name.startswith("text_encoder"))
    tensors["old_name"] = tensors.pop(old)
    torch.save(content | {"itmkit_version": written}, path)
    with pytest.raises(InputError) as caught:
        DAIM.load_from_checkpoint(path)
    told = str(caught.value)
    names = f"old_name (not in the model), {old} (not in the file)"
    assert told.startswith(f"checkpoint '{path}' does not fit DAIM: {names}; expected ")
    assert note is None or note in told
    assert ("written by" in told) == (note is not None)
    DAIM.load_from_checkpoint(path, strict=False)

    content["model_config"]["init_args"]["old_argument"] = 1
    torch.save(content | {"itmkit_version": written}, path)
    with pytest.raises(InputError, match="old_argument") as caught:
        DAIM.load_from_checkpoint(path)
    assert ("written by" in str(caught.value)) == (note is not None)


@pytest.mark.parametrize(
    "hostile",
    [
        {"optimizer": {"class_path": "unknown_module_of_this_test.Optimizer"}},
        {"optimizer": "unknown_module_of_this_test.optimizer"},
        {"text_encoder": "unknown_module_of_this_test.Encoder"},
        {"optimizer": "subprocess.getoutput"},
        {"image_encoder": {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}},
        {"lr_factors": {"a": {"class_path": "subprocess.Popen", "init_args": {"args": "true"}}}},
        {"lr_scheduler": "torch.hub.load"},
    ],
)
def test_error_a_checkpoint_names_other_code(
    hostile: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "unknown_module_of_this_test.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    section = {"class_path": "itmkit.systems.MATE", "init_args": {**SYSTEMS["MATE"], **hostile}}
    content = {"state_dict": {}, "system": "MATE", "model_config": section}
    torch.save(content, tmp_path / "hostile.ckpt")
    with pytest.raises(InputError, match=r"hostile\.ckpt' names"):
        MATE.load_from_checkpoint(tmp_path / "hostile.ckpt")
    assert "unknown_module_of_this_test" not in sys.modules


def test_names_that_may_stand_in_a_checkpoint() -> None:
    section = {
        "class_path": "tiny_matcher.TinyMatcher",
        "init_args": {
            "optimizer": "torch.optim.AdamW",
            "lr_scheduler": {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau"},
            "loss": [{"class_path": "itmkit.losses.HECTLoss"}, {"class_path": "torch.nn.Linear"}],
        },
    }
    assert check_class_paths(section, source="test") is TinyMatcher
