"""A retriever of every kind of thing that can be loaded; its scores are those of the run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from clip_models import save_clip
from torch import Tensor

import itmkit
from itmkit.checks import InputError
from itmkit.data import KarpathyDataset
from itmkit.nn import TimmGrid
from itmkit.retrieval import encode, score_matrix
from itmkit.systems import load_run

pytestmark = pytest.mark.filterwarnings("ignore:.*are unknown to the")


def scores_of_the_run(run: Path) -> Tensor:
    """Of the validation images and captions, as an evaluation computes them."""
    model, data = load_run(run)
    gallery = encode(model, data.val_dataloader())
    return score_matrix(model, gallery.images, gallery.texts)


def val_split(photos: Path) -> tuple[list[Path], list[str]]:
    data = KarpathyDataset("val", photos / "data.json", photos / "images")
    return [photos / "images" / name for name in data.names], list(data.captions)


@pytest.mark.parametrize("kind", ["pixel_run", "feature_run"])
def test_scores_of_files_are_those_of_the_run(
    kind: str, photos: Path, request: pytest.FixtureRequest
) -> None:
    run = request.getfixturevalue(kind)
    retriever = itmkit.load(run, device="cpu")
    assert not retriever.model.training
    found = retriever.scores(*val_split(photos))
    expected = scores_of_the_run(run)
    assert expected.std() > 1e-5
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_run_by_its_folders_and_its_name(pixel_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = pixel_run.parent.parent
    monkeypatch.chdir(runs.parent)
    known = [pixel_run, pixel_run.resolve(), runs / "mine", "mine", "runs/mine/latest"]
    known += [pixel_run / "checkpoints/last.ckpt"]
    prints = {itmkit.load(path, device="cpu").fingerprint for path in known}
    assert len(prints) == 1


def test_a_folder_goes_before_a_run_of_its_name(
    pixel_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pixel_run.resolve(), tmp_path / "runs/tiny/latest")
    save_clip(tmp_path / "tiny")
    assert type(itmkit.load("tiny").model).__name__ == "DualEncoder"
    shutil.rmtree(tmp_path / "tiny")
    assert type(itmkit.load("tiny").model).__name__ == "MATE"


@pytest.mark.parametrize("family", ["siglip", "clip"])
def test_clip_like_model_scores_as_transformers_does(
    family: str, photos: Path, tmp_path: Path
) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel, PreTrainedTokenizerFast

    save_clip(tmp_path / "model", family)
    retriever = itmkit.load(tmp_path / "model", device="cpu")
    paths, texts = [photos / f"images/{row}.jpg" for row in range(3)], ["a red dog", "The CAT and"]
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model", backend="pil")
    pixels = processor([Image.open(path) for path in paths], return_tensors="pt")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "model")
    if family == "siglip":  # lower case, padded to all positions, no mask
        texts_in = [text.lower() for text in texts]
        ids = tokenizer(texts_in, padding="max_length", max_length=12, return_tensors="pt")
        inputs = {"input_ids": ids["input_ids"]}
    else:
        inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
        inputs.pop("token_type_ids", None)
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        expected = model(**pixels, **inputs).logits_per_image
    assert expected.std() > 1e-3
    torch.testing.assert_close(retriever.scores(paths, texts), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "config.yaml has data: None; expected the section of the data"),
        ("data: x", "config.yaml has data: 'x'; expected the section of the data"),
        ("data: [", "config.yaml, line 1 is not YAML"),
    ],
)
def test_error_of_a_broken_configuration(
    config: str, message: str, pixel_run: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(pixel_run.resolve(), tmp_path / "run"))
    (copy / "config.yaml").write_text(config)
    with pytest.raises(InputError, match=message):
        itmkit.load(copy)


def test_features_of_a_backbone_that_is_gone(
    feature_run: Path, photos: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(feature_run.resolve(), tmp_path / "run"))
    features = Path(shutil.copytree(feature_run.parents[2] / "features", tmp_path / "features"))
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["init_args"]["dataset"]["init_args"]["features"] = str(features)
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    notes = features / "train_features.json"
    text = notes.read_text()
    notes.write_text(text.replace("weights.pt", "gone.pt"))
    with pytest.raises(InputError, match=r"features of 'test_resnet', .*gone\.pt.*backbone=MODULE"):
        itmkit.load(copy)
    other = TimmGrid("test_resnet", image_size=64, frozen=True)
    found = itmkit.load(copy, backbone=other, device="cpu")
    assert found.scores([photos / "images/0.jpg"], ["a dog"]).shape == (1, 1)
    weights = torch.load(photos / "weights.pt", weights_only=True)
    torch.save({name: value + 1 for name, value in weights.items()}, tmp_path / "gone.pt")
    notes.write_text(text.replace(str(photos / "weights.pt"), str(tmp_path / "gone.pt")))
    with pytest.raises(InputError, match="the weights of 'test_resnet' are not those"):
        itmkit.load(copy)
    shutil.rmtree(features)
    with pytest.raises(InputError, match=r"features is '.*', which has no notes of itmkit extract"):
        itmkit.load(copy)


@pytest.mark.parametrize("kind", ["saved", "transformers", "hub"])
def test_error_of_a_backbone_without_a_run(pixel_run: Path, tmp_path: Path, kind: str) -> None:
    model = tmp_path / "model"
    if kind == "saved":
        itmkit.load(pixel_run, device="cpu").save_pretrained(model)
    elif kind == "transformers":
        save_clip(model)
    with pytest.raises(InputError, match=r"backbone is a Linear, and '.*' is no run; expected"):
        itmkit.load("nobody/model" if kind == "hub" else model, backbone=torch.nn.Linear(2, 2))


def test_features_of_one_drawn_world_cannot_be_made_of_pictures(tmp_path: Path) -> None:
    from tiny_runs import runs, write_config

    from itmkit.cli import main

    options = {"default_root_dir": str(tmp_path / "runs"), "max_steps": 1}
    main(["fit", "--config", str(write_config(tmp_path, "TVRN", **options))])
    (run,) = runs(tmp_path)
    with pytest.raises(InputError, match="does not say how its images were made of pictures"):
        itmkit.load(run)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from itmkit import pretrained

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(pretrained, "_reached", [])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no checkpoint")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    with pytest.raises(
        FileNotFoundError, match=r"path_or_name is '/no/such', which does not exist"
    ):
        itmkit.load("/no/such")
    with pytest.raises(InputError, match=r"^[^\n]*'no-one/no-model', which is not on this machine"):
        itmkit.load("no-one/no-model")
    (tmp_path / "runs/mine").mkdir(parents=True)
    with pytest.raises(InputError, match=r"; nor is there a run runs/mime. Did you mean 'mine'\?"):
        itmkit.load("mime")
    with pytest.raises(InputError, match=r"a folder without config\.yaml"):
        itmkit.load("empty")
    for nothing in ("", None):
        with pytest.raises(InputError, match=r"path_or_name is .*; expected a folder or a name"):
            itmkit.load(nothing)  # type: ignore[arg-type]
    for device in ("graphics", "cuda:99"):
        with pytest.raises(InputError, match=rf"^device is '{device}'; expected one [^\n]*$"):
            itmkit.load("empty", device=device)
    for name in ("notes.txt", "empty.ckpt"):
        with pytest.raises(InputError, match=f"{name} is not a readable file of torch.save"):
            itmkit.load(name)


OWN = """
from itmkit.systems import MATE

print("imported")


class Own(MATE):
    pass
"""


def test_class_of_another_package_needs_trust(
    pixel_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_system_of_mine.py").write_text(OWN)
    copy = Path(shutil.copytree(pixel_run.resolve(), tmp_path / "run"))
    file = copy / "checkpoints/best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["model_config"]["class_path"] = "own_system_of_mine.Own"
    torch.save(checkpoint | {"system": "Own"}, file)
    with pytest.raises(InputError, match=r"trust=\['own_system_of_mine'\]"):
        itmkit.load(copy)
    assert "imported" not in capsys.readouterr().out
    retriever = itmkit.load(copy, trust=["own_system_of_mine"])
    assert type(retriever.model).__name__ == "Own"
    with pytest.raises(InputError, match=r"trust=\['own_system_of_mine'\]"):  # also once imported
        itmkit.load(copy)
    retriever.save_pretrained(tmp_path / "saved")
    with pytest.raises(InputError, match=r"trust=\['own_system_of_mine'\]"):
        itmkit.load(tmp_path / "saved")
    again = itmkit.load(tmp_path / "saved", trust=["own_system_of_mine"])
    assert again.fingerprint == retriever.fingerprint


def test_import_stays_light() -> None:
    code = "import itmkit, sys; 'load' in dir(itmkit); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
