"""Photos and captions become features, and these a trained matcher, by the command line alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from text_models import WIDTH, save_text_model
from tiny_runs import differences, everything

import itmkit
from itmkit.checks import InputError
from itmkit.cli import main
from itmkit.data import KarpathyDataset, ShapesDataset
from itmkit.retrieval import Gallery, encode, score_matrix
from itmkit.systems import load_run


def part(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, captions in two forms, and the weights of two tiny models."""
    import timm

    torch.manual_seed(0)  # the score after 3 steps, where one run ends, is not to be the best
    folder = tmp_path_factory.mktemp("features")
    (folder / "images").mkdir()
    generator = np.random.default_rng(0)
    entries, rows = [], []
    for split, count in (("train", 6), ("val", 4)):
        shapes = ShapesDataset(split, length=count)
        for row in range(count):
            name = f"{split}_{row}.jpg"
            pixels = generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name)
            captions = [shapes.captions[caption] for caption in shapes.captions_of(row)]
            sentences = [{"raw": caption} for caption in captions]
            entries.append({"filename": name, "split": split, "sentences": sentences})
            rows += [[name, split, caption] for caption in captions]
    (folder / "data.json").write_text(json.dumps({"images": entries}))
    with open(folder / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([["filename", "split", "caption"], *rows])
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "weights.pt")
    save_text_model(folder / "text", layers=2)
    return folder


def extract(folder: Path, output: str, split: str, *options: str) -> None:
    where = {"images": "images", "annotations": "data.json", "output": output}
    words = [f"--{name}={folder / value}" for name, value in where.items()]
    main(["extract", *words, f"--split={split}", *options])


def both(folder: Path) -> list[str]:
    image = ["--model=test_resnet", "--image_size=32", f"--checkpoint={folder / 'weights.pt'}"]
    return [*image, f"--text_model={folder / 'text'}"]


def config(folder: Path) -> Path:
    width = np.load(folder / "both/train_ims.npy").shape[2]
    image = part("itmkit.nn.RegionProjection", in_dim=width, dim=8, hidden_dim=8, dropout=0.1)
    text = part("itmkit.nn.StoredTokens", in_dim=WIDTH, dim=8, dropout=0.1, token_drop=0.2)
    dataset = part(
        "itmkit.data.KarpathyDataset",
        annotations=str(folder / "data.json"),
        features=str(folder / "both"),
    )
    data = part(
        "itmkit.data.ImageTextData",
        dataset=dataset,
        text_features=str(folder / "both"),
        batch_size=6,
        eval_batch_size=3,
        caption_views=2,
        distinct_captions=True,
        test_split="val",
    )
    trainer = {
        "max_steps": 8,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    system = part("itmkit.systems.MATE", image_encoder=image, text_encoder=text, queue_size=12)
    content = {"model": system, "data": data, "trainer": trainer, "name": "run", "untrained": False}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"seed_everything": 3, **content}))
    return path


def test_training_on_stored_features_resumes_evaluates_and_predicts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for split in ("train", "val"):
        extract(folder, "both", split, *both(folder), "--views=3")
    assert len(list((folder / "both").glob("train_ims*.npy"))) == 3
    given = config(folder)
    runs = []
    for name, steps in (("whole", [8]), ("cut", [3, 8])):  # an epoch has five
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        resume: list[str] = []
        for count in steps:
            main(["fit", "--config", str(given), f"--trainer.max_steps={count}", *resume])
            resume = ["--ckpt_path", "runs/run/latest/checkpoints/last.ckpt"]
        runs.append(Path("runs/run/latest").resolve())
    assert differences(*map(everything, runs)) == []
    best = str(runs[0] / "checkpoints/best.ckpt")
    saved = torch.load(best, weights_only=True)["ImageTextData"]
    assert saved["text_features"]["text_model"] == str(folder / "text")
    assert saved["preprocessing"]["size"] == 32
    main(["test", "--config", str(runs[0] / "config.yaml"), "--ckpt_path", best])
    main(["predict", "--config", str(runs[0] / "config.yaml"), "--ckpt_path", best])
    encoded = Gallery.load(next(Path("runs/run").glob("*-predict")))
    assert encoded.texts.vector.shape == (20, 8)
    # Pictures and sentences themselves, through both frozen models, get the scores of the run.
    retriever = itmkit.load(runs[0], device="cpu")
    val = KarpathyDataset("val", folder / "data.json", folder / "images")
    found = retriever.scores([folder / "images" / name for name in val.names], val.captions)
    model, data = load_run(runs[0])
    gallery = encode(model, data.val_dataloader())
    expected = score_matrix(model, gallery.images, gallery.texts)
    assert expected.std() > 1e-4
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    retriever.save_pretrained(tmp_path / "saved")
    (folder / "text").rename(folder / "elsewhere")
    try:
        again = itmkit.load(tmp_path / "saved", device="cpu")
        with pytest.raises(InputError, match=r"captions of .* are features of .*cannot be loaded"):
            itmkit.load(runs[0])
    finally:
        (folder / "elsewhere").rename(folder / "text")
    assert again.fingerprint == retriever.fingerprint
    pair = ([folder / "images/val_0.jpg"], ["a red circle"])
    assert torch.equal(again.scores(*pair), retriever.scores(*pair))


def test_captions_alone_of_every_kind_of_annotations(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"--text_model={folder / 'text'}"
    extract(folder, "scan", "val", *both(folder)[:-1])
    found = {}
    for name in ("data.json", "captions.csv", "scan"):
        output = tmp_path / name
        words = ["--split=val", text, "--text_layers=[0,2]", "--max_length=9"]
        main(["extract", f"--annotations={folder / name}", f"--output={output}", *words])
        out = capsys.readouterr().out.splitlines()[-1]
        assert out == f"{output / 'val_tokens.npy'}: 20 captions"
        found[name] = [path.read_bytes() for path in sorted(output.iterdir())]
    assert found["data.json"] == found["captions.csv"] == found["scan"]
    notes = json.loads((output / "val_tokens.json").read_text())
    assert (notes["shape"][1], notes["layers"], notes["max_length"]) == (2 * WIDTH, [0, 2], 9)


def test_photos_of_a_table(folder: Path) -> None:
    extract(folder, "json", "val", *both(folder)[:-1])
    table = f"--annotations={folder / 'captions.csv'}"
    extract(folder, "csv", "val", *both(folder)[:-1], table)
    for path in (folder / "json").iterdir():
        assert (folder / "csv" / path.name).read_bytes() == path.read_bytes()


TEXT = ["--images=null", "--text_model=TEXT"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "model and text_model are both null"),
        (["--text_model=TEXT", "--annotations=null"], "annotations is null; expected where the"),
        (["--images=null", "--text_model=nowhere"], "name_or_path is 'nowhere'"),
        ([*TEXT, "--text_layers=[3]"], "text_layers is 3; expected [-3, 3)"),
        ([*TEXT, "--split=test"], "no image of the split 'test'"),
        ([*TEXT, "--max_length=2"], "max_length is 2; expected 3 or more"),
        (["--model=test_resnet", "--pretrained=true", "--images=null"], "images is null"),
        (["--model=test_resnet", "--pretrained=true", "--views=0"], "views is 0; expected 1"),
    ],
)
def test_error_is_one_line_and_leaves_nothing(
    folder: Path, options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = [option.replace("TEXT", str(folder / "text")) for option in options]
    with pytest.raises(SystemExit) as stop:
        extract(folder, "refused", "train", *words)
    assert stop.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("itmkit: error: ")
    assert told in error
    assert not (folder / "refused").exists()
