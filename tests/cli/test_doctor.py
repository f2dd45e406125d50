"""``itmkit doctor``."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import timm
from clip_models import save_clip

import itmkit
from itmkit import doctor
from itmkit.cli import main


def rows(text: str) -> dict[str, str]:
    """What is printed behind each name."""
    lines = (line.split(None, 1) for line in text.splitlines() if line.startswith("  "))
    return {line[0]: line[-1] for line in lines}


def test_smoke(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    text = capsys.readouterr().out
    assert text.startswith(f"itmkit {itmkit.__version__} ({Path(itmkit.__file__).parent})\n")
    found = rows(text)
    assert found["torch"] == version("torch")
    assert found["timm"] == timm.__version__
    assert "times as long as in float32" in text
    assert found["hub"].endswith(" MB")
    assert "the configuration reads" not in text


def test_a_missing_and_an_old_package_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ["torch>=2", "no-such>=1", 'peft>=99; extra == "lora"', 'numpy; extra == "app"']
    monkeypatch.setattr(doctor, "requires", lambda name: needed)
    monkeypatch.setattr(
        doctor, "metadata", lambda name: type("M", (), {"get_all": lambda *_: ["lora", "app"]})()
    )
    assert dict(doctor.versions())["no-such"] == "missing; expected >=1"
    assert dict(doctor.extras()) == {
        "lora": "lacks peft: pip install 'itmkit[lora]'",
        "app": "installed",
    }


def test_what_a_configuration_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    save_clip(tmp_path / "text")
    (tmp_path / "data.json").write_text("{}")
    words = ["--config=mate/karpathy_pixels", "--captions=data.json", "--photos=pictures"]
    main(["doctor", *words])
    found = rows(capsys.readouterr().out)
    assert found["data.dataset.annotations"] == "data.json: found"
    assert found["data.dataset.images"] == "pictures: missing"
    assert found["model.image_encoder.model_name"].startswith("resnet50: ")


def test_a_local_folder_is_not_downloaded(tmp_path: Path) -> None:
    part = {"class_path": "itmkit.nn.TransformerText", "init_args": {"name_or_path": str(tmp_path)}}
    config = {"model": {"init_args": {"text_encoder": part}}}
    place = "model.text_encoder.name_or_path"
    assert dict(doctor.needs(config)) == {place: f"{tmp_path}: local folder"}
    part["init_args"] = {"name_or_path": "no/such-model"}
    assert "would be downloaded from the hub" in dict(doctor.needs(config))[place]


@pytest.mark.parametrize(
    ("argument", "value", "state"),
    [
        ("name_or_path", "a/b/c", "neither a folder nor a name that the hub can have"),
        ("name_or_path", "", "neither a folder nor a name that the hub can have"),
        ("model_name", "resnet50.nope", "Invalid pretrained tag (nope) for resnet50."),
        ("model_name", "no_such", "no model that timm knows"),
        ("model_name", "hf-hub:no/such", "not on this machine; would be downloaded from the hub"),
    ],
)
def test_impossible_names_are_reported(argument: str, value: str, state: str) -> None:
    part = {argument: value, "pretrained": True}
    assert dict(doctor.needs({"model": part})) == {f"model.{argument}": f"{value}: {state}"}


def test_files_of_the_members_of_a_list() -> None:
    callback = {"class_path": "Some", "init_args": {"checkpoint": "no/such"}}
    found = dict(doctor.needs({"trainer": {"callbacks": [callback, callback]}}))
    assert found == {f"trainer.callbacks[{i}].checkpoint": "no/such: missing" for i in (0, 1)}


def test_error_of_a_wrong_option_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["doctor", "--confg", "mate/shapes"])
    assert left.value.code == 2
    assert "unknown option '--confg'" in capsys.readouterr().err


def test_slow_half_precision_is_advised_against(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itmkit.precision.cpu_slowdown", lambda dtype: 9.0)
    assert dict(doctor.devices())["cpu, bfloat16"].endswith(
        "9.0 times as long as in float32: slow, keep float32"
    )
