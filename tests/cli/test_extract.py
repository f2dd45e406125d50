from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from itmkit.cli import main


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photos in Karpathy's form, with weights of a tiny timm model."""
    import timm

    (tmp_path / "images").mkdir()
    entries = []
    for row in range(3):
        pixels = np.full((40, 50, 3), 60 * row, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{row}.jpg")
        sentences = [{"raw": f"photo {row}, sentence {number}"} for number in range(5)]
        entries.append({"filename": f"{row}.jpg", "split": "val", "sentences": sentences})
    (tmp_path / "data.json").write_text(json.dumps({"images": entries}))
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "weights.pt")
    return tmp_path


def extract(folder: Path, *options: str) -> None:
    known = {"annotations": "data.json", "images": "images", "output": "features"}
    words = [f"--{name}={folder / value}" for name, value in known.items()]
    main(["extract", *words, "--split=val", "--model=test_resnet", "--image_size=32", *options])


def test_smoke_extract(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extract(photos, f"--checkpoint={photos / 'weights.pt'}", "--device=cpu", "--dtype=float32")
    features = np.load(photos / "features/val_ims.npy", allow_pickle=False)
    assert features.shape[0] == 3
    assert features.dtype == np.float32
    assert not np.allclose(features[0], features[2])
    assert len((photos / "features/val_caps.txt").read_text().splitlines()) == 15
    assert capsys.readouterr().out == f"{photos / 'features/val_ims.npy'}: 3 images\n"


def test_links_and_large_photos_are_refused_unless_allowed(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = (photos / "images/1.jpg").rename(photos / "elsewhere.jpg")
    (photos / "images/1.jpg").symlink_to(elsewhere)
    options = [f"--checkpoint={photos / 'weights.pt'}", "--device=cpu"]
    for refused, told in (("--follow_links=false", "follow_links"), ("--max_pixels=1999", "=1999")):
        with pytest.raises(SystemExit):
            extract(photos, *options, "--follow_links=true", refused)
        assert told in capsys.readouterr().err
    extract(photos, *options, "--follow_links=true", "--max_pixels=2000")
    assert np.load(photos / "features/val_ims.npy").shape[0] == 3


def test_photos_of_a_folder_without_annotations(photos: Path) -> None:
    (photos / "images/2.jpg").rename(photos / "images/b.JPEG")
    options = ["--model=test_resnet", "--image_size=32", f"--checkpoint={photos / 'weights.pt'}"]
    folders = [f"--images={photos / 'images'}", f"--output={photos / 'features'}"]
    main(["extract", *folders, "--split=mine", *options])
    names = (photos / "features/mine_ids.txt").read_text().split()
    assert names == ["0.jpg", "1.jpg", "b.JPEG"]
    assert np.load(photos / "features/mine_ims.npy").shape[0] == 3
    assert not (photos / "features/mine_caps.txt").exists()


def test_annotations_without_captions(photos: Path) -> None:
    content = json.loads((photos / "data.json").read_text())
    for entry in content["images"]:
        del entry["sentences"]
        entry["split"] = "gallery"
    (photos / "data.json").write_text(json.dumps(content))
    extract(photos, f"--checkpoint={photos / 'weights.pt'}", "--split=gallery")
    assert (photos / "features/gallery_ids.txt").read_text().split() == ["0.jpg", "1.jpg", "2.jpg"]
    assert not (photos / "features/gallery_caps.txt").exists()


def test_normalisation_can_be_chosen(photos: Path) -> None:
    weights = f"--checkpoint={photos / 'weights.pt'}"
    extract(photos, weights)
    for flag in ("--mean=[0.1,0.2,0.3]", "--std=[0.5,0.5,0.4]"):
        with pytest.raises(SystemExit):  # the folder holds the features of other pixels
            extract(photos, weights, flag)


def test_mean_with_the_mirror_image(photos: Path) -> None:
    """Noted, so that a search makes the same features; a folder has one kind alone."""
    with Image.open(photos / "images/0.jpg") as photo:
        pixels = np.array(photo)
    pixels[:, 25:] = 255
    Image.fromarray(pixels).save(photos / "images/0.jpg")
    weights = f"--checkpoint={photos / 'weights.pt'}"
    extract(photos, weights, "--mirror_mean=true", f"--output={photos / 'both'}")
    extract(photos, weights)
    both, plain = (np.load(photos / name / "val_ims.npy")[0] for name in ("both", "features"))
    assert not np.allclose(both, plain, atol=1e-2)
    notes = json.loads((photos / "both/val_features.json").read_text())
    assert notes["config"]["init_args"]["mirror_mean"] is True
    assert notes["backbone"] == "test_resnet, mean with the mirror image"
    with pytest.raises(SystemExit):
        extract(photos, weights, "--mirror_mean=true")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ([], "checkpoint is null and pretrained false; expected one of them"),
        (["--checkpoint=weights.pt", "--model=resnet1"], "model is 'resnet1'"),
        (["--checkpoint=nowhere.pt"], "nowhere.pt"),
        (["--pretrained=true", "--split=test"], "no image of the split 'test'"),
        (["--pretrained=true", "--annotations=nowhere.json"], "nowhere.json"),
        (["--pretrained=true", "--split=dev"], "no image of the split 'dev'; it has ['val']"),
        (["--pretrained=true", "--split=a/b"], "split is 'a/b'; expected a name for files"),
        (["--checkpoint=weights.pt", "--image_size=0"], "image_size is 0; expected 1 or more"),
        (["--checkpoint=weights.pt", "--num_workers=-1"], "num_workers is -1; expected 0 or more"),
        (["--checkpoint=weights.pt", "--device=gpu"], "device is 'gpu'; expected one of this"),
        (["--pretrained=true", "--flip=0.5"], "flip is 0.5, without effect where views is 1"),
        (["--pretrained=true", "--max_length=9"], "max_length is 9, without effect without text_m"),
        (["--pretrained=true", "--checkpoint_by_order=true"], "is True, without effect without ch"),
        (["--model=null", "--text_model=x"], "image_size is 32, without effect without model; exp"),
        (
            ["--model=null", "--text_model=x", "--image_size=null"],
            "/images, without effect without",
        ),
        (["--modle=x"], "unknown option --modle=x. Did you mean '--model'?"),
    ],
)
def test_error_is_one_line_and_leaves_nothing(
    options: list[str],
    told: str,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(photos)
    with pytest.raises(SystemExit) as stop:
        extract(photos, *options)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("itmkit: error: ")
    assert told in line
    assert not (photos / "features").exists()
