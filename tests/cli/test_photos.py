"""``{mate,daim,tvrn}/photos``: from a folder and a table to a measured system, by short options."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from picture_files import as_structs, write_parquet, write_tar
from pictures import COLOURS, save_picture
from text_models import WIDTH, save_text_model
from tiny_cli import refused

import itmkit
from itmkit.cli import main
from itmkit.cli.arguments import composed
from itmkit.configs.agreement import value_of
from itmkit.frozen_features import FrozenFeatureData
from itmkit.systems import load_run

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of two tiny models; the channels of the one are 256."""
    import timm

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    torch.save(timm.create_model("test_byobnet").state_dict(), folder / "image.pt")
    save_text_model(folder / "text")
    return folder


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with 20 photos, two captions each, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["itmkit"])
    rows = [["file_name", "caption"]]
    for row in range(20):
        colour = list(COLOURS)[row % 4]
        save_picture(tmp_path / f"photos/{row}.jpg", colour, shade=row)
        rows += [[f"{row}.jpg", f"a {colour} circle"], [f"{row}.jpg", f"one {colour} thing"]]
    with open("captions.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return tmp_path


def options(models: Path, text: str | None = None) -> list[str]:
    text = text or str(models / "text")
    return [
        *("--photos", "photos", "--captions", "captions.csv", "--image_model", "test_byobnet"),
        *("--image_checkpoint", str(models / "image.pt"), "--image_checkpoint_by_order", "true"),
        *("--text_model", text),
    ]


def fit(system: str, *words: str) -> None:
    quiet = ["enable_progress_bar=false", "enable_model_summary=false", "max_steps=2"]
    main(["fit", f"--config={system}/photos", *(f"--trainer.{one}" for one in quiet), *words])


def folders(cache: Path) -> dict[str, int]:
    """Folders of the cache with the time of the last change in them."""
    found = (path for path in (cache / "itmkit").iterdir())
    return {path.name: max(one.stat().st_mtime_ns for one in path.glob("*_*")) for path in found}


@pytest.mark.parametrize("system", ["mate", "daim", "tvrn"])
def test_a_folder_and_a_table_are_enough(
    system: str, photos: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(system, *options(models))
    told = capsys.readouterr()
    assert "16 photos with 32 captions to train on, 2 to validate: data.batch_size 8" in told.err
    for name in folders(photos / "cache"):
        assert str(photos / "cache" / "itmkit" / name) in told.out
    config = yaml.safe_load(Path(f"runs/{system}-photos/latest/config.yaml").read_text())
    assert value_of(config, "model.text_encoder.in_dim") == WIDTH
    assert value_of(config, "model.image_encoder.in_dim") == 256
    before = folders(photos / "cache")
    main(["test", f"--ckpt_path=runs/{system}-photos/latest", "--trainer.logger=false"])
    assert "2 images" in capsys.readouterr().out
    after = folders(photos / "cache")
    assert before.items() < after.items()  # of the test split alone there were none


def test_words_need_no_text_model(
    photos: Path, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector")
    log.addHandler(caplog.handler)
    with pytest.warns(UserWarning, match="16 photos to train on will hardly teach"):
        fit("mate", *options(models, "bigru"))
    log.removeHandler(caplog.handler)
    assert "weights_only" not in caplog.text
    assert all(name.startswith("test_byobnet") for name in folders(photos / "cache"))
    config = yaml.safe_load(Path("runs/mate-photos/latest/config.yaml").read_text())
    assert value_of(config, "data.text_model") is None
    assert value_of(config, "data.vocabulary_min_count") == 2
    trainer = config["trainer"]
    assert (trainer["max_steps"], trainer["val_check_interval"]) == (2, None)  # as given


def test_what_changed_is_extracted_anew(photos: Path, models: Path) -> None:
    from functools import partial

    from itmkit.data import CaptionedFolder

    dataset = partial(CaptionedFolder, photos="photos", captions="captions.csv")

    def opened(split: str = "val", weights: str = "image.pt") -> tuple[set[str], torch.Tensor]:
        data = FrozenFeatureData(
            dataset, "test_byobnet", image_checkpoint=models / weights, image_size=32
        )
        found = data.split(split)
        return set(folders(photos / "cache")), found.source.read([0]).features

    one, features = opened()
    again, same = opened()
    assert one == again
    assert torch.equal(features, same)
    val = FrozenFeatureData(dataset, "test_byobnet", image_checkpoint=models / "image.pt")
    name = val.dataset("val").names[0]
    save_picture(photos / "photos" / name, "white", shade=99)
    os.utime(photos / "photos" / name, (1, 1))
    new, other = opened()
    assert len(new - one) == 1
    assert not torch.equal(features, other)
    weights = torch.load(models / "image.pt", weights_only=True)
    torch.save({key: value * 2 for key, value in weights.items()}, models / "other.pt")
    assert len(opened(weights="other.pt")[0] - new) == 1


def test_print_config_shows_full_options_and_extracts_nothing(
    photos: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config=mate/photos", *options(models), "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    assert value_of(config, "data.dataset.photos") == "photos"
    assert value_of(config, "data.image_checkpoint_by_order") is True
    assert value_of(config, "data.batch_size") == 8
    assert value_of(config, "trainer.max_steps") == 80
    assert value_of(config, "trainer.val_check_interval") == 13
    assert not (photos / "cache").exists()


@pytest.mark.parametrize(
    ("given", "batch_size", "steps", "interval"),
    [
        ("--data.batch_size=4", 4, 160, 26),
        ("--trainer.devices=2", 4, 80, 13),
        ("--trainer.devices=2 --trainer.num_nodes=2", 2, 80, 13),
        ("--trainer.devices=2 --data.batch_size=4", 4, 80, 13),
        ("--trainer.accumulate_grad_batches=2", 8, 40, 13),
        ("--trainer.devices=none", 8, 80, 13),  # which the Trainer refuses
    ],
)
def test_length_follows_the_captions_of_a_step(
    given: str, batch_size: int, steps: int, interval: int, photos: Path, models: Path
) -> None:
    words = ["fit", "--config=mate/photos", *options(models), "--trainer.accelerator=cpu"]
    config = composed([*words, *given.split()]).config
    names = ("data.batch_size", "trainer.max_steps", "trainer.val_check_interval")
    assert [value_of(config, name) for name in names] == [batch_size, steps, interval]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "photos='data/photos' is not a folder"),
        ("--photos=nowhere --captions=captions.csv", "photos='nowhere' is not a folder"),
        ("--photos=photos --captions=none.csv", "captions='none.csv' is not a file"),
        (
            "--photos=photos --captions=captions.csv --text_model=bigru --image_checkpoint=no.pt",
            "image_checkpoint 'no.pt' is not a file",
        ),
    ],
)
def test_faults(words: str, told: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told in refused(capsys, "fit", "--config=mate/photos", *words.split())
    assert not (photos / "cache").exists()


@pytest.mark.parametrize("text", ["bigru", None])
def test_pictures_are_found_with_the_run(
    photos: Path, models: Path, capsys: pytest.CaptureFixture[str], text: str | None
) -> None:
    fit("mate", *options(models, text), "--name=mine")
    main(["index", "photos", "--model=mine"])
    assert "20 pictures, 20 added" in capsys.readouterr().out
    main(["search", "mine", "a red circle", "-k=3", "--json"])
    hits = json.loads(capsys.readouterr().out)
    assert [Path(hit["path"]).parent.name for hit in hits] == ["photos"] * 3
    run = itmkit.load("mine")
    _, data = load_run("runs/mine/latest")
    dataset = data.split("val")
    stored = run.model.encode_image(dataset.source.read([0])).vector
    torch.testing.assert_close(
        run.encode_images([photos / "photos" / dataset.names[0]]).vector, stored
    )


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_photos_and_captions_inside_a_file(
    ending: str, tmp_path: Path, photos: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = {path.name: path.read_bytes() for path in sorted(Path("photos").glob("*.jpg"))}
    texts = {name: f"a {list(COLOURS)[int(name[:-4]) % 4]} circle" for name in pictures}
    if ending == "tar":
        beside = {name.replace("jpg", "txt"): text for name, text in texts.items()}
        write_tar(Path("p.tar"), (pictures | beside).items())
    else:
        columns = {"image": as_structs(pictures), "text": list(texts.values())}
        write_parquet(Path("p.parquet"), columns)
    shutil.rmtree("photos")
    words = options(models)
    for name in ("--photos", "--captions"):
        at = words.index(name)
        words = words[:at] + words[at + 2 :]
    fit("mate", f"--photos=p.{ending}", *words)
    assert "16 photos with 16 captions to train on, 2 to validate" in capsys.readouterr().err
    weights = [f"--checkpoint={models / 'image.pt'}", "--checkpoint_by_order=true"]
    main(["extract", f"--images=p.{ending}", "--model=test_byobnet", *weights, "--output=out"])
    assert "out/train_ims.npy: 16 images" in capsys.readouterr().out
    names = Path("out/train_ids.txt").read_text().split()
    captions = Path("out/train_caps.txt").read_text().splitlines()
    assert captions == [texts[name] for name in names]
