"""The data, the clock and the table of ``python -m benchmarks.published``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from tiny_matcher import TinyDataset, TinyMatcher

from benchmarks import published
from benchmarks.published import CONFIGS, PARTS, Sizes, commands_of, overrides, table
from benchmarks.step_clock import FILE_NAME, StepClock
from itmkit.configs import load_config
from itmkit.data import ImageTextData, KarpathyDataset, PrecompDataset

SIZES = Sizes("cpu", steps=4, batch=2, images=3, gallery=2, candidates=1)


def test_made_up_data_has_the_published_shapes(tmp_path: Path) -> None:
    published.make_regions(tmp_path / "regions", {"dev": 3})
    regions = PrecompDataset("dev", tmp_path / "regions")
    image: Any = regions.image(2)
    assert image.features.shape == (36, 2048)
    assert image.boxes.shape == (36, 4)
    assert len(regions.captions) == 15
    assert all(8 <= len(caption.split()) <= 20 for caption in regions.captions)
    published.make_photos(tmp_path / "photos", {"val": 2, "test": 1})
    photos = KarpathyDataset("val", tmp_path / "photos" / "dataset.json", tmp_path / "photos")
    assert photos.image(1).shape == (3, 224, 224)
    assert len(photos.captions) == 10


@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration_has_its_parts(config: str, tmp_path: Path) -> None:
    commands = commands_of(config, SIZES, tmp_path)
    system = config.split("/")[0]
    assert set(commands) == set(PARTS) - (set() if system == "mate" else {"second-stage"})
    model = load_config(config)["model"]["init_args"]
    changed = overrides(config, SIZES)["model"]["init_args"]
    assert changed.keys() <= model.keys()  # no part of a model is added or left out
    assert ("image_encoder" in changed) == (system == "daim")


def test_clock_writes_steps_and_evaluations(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    options: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=3, callbacks=[StepClock()], logger=logger, **options
    )
    matcher, data = TinyMatcher(), ImageTextData(TinyDataset, batch_size=2, vocabulary_min_count=1)
    trainer.fit(matcher, data)
    found = json.loads((tmp_path / FILE_NAME).read_text())
    assert found["global_step"] == len(found["steps"]) == 3
    for step in found["steps"]:
        assert step["seconds"] > 0
        assert step["megabytes"] > 10
        assert step["trained"] == sum(p.numel() for p in matcher.parameters())
    trainer.validate(matcher, data, verbose=False)
    found = json.loads((tmp_path / FILE_NAME).read_text())
    assert found["evaluation"]["seconds"] > 0


def test_table_tells_frozen_steps_apart_and_what_failed() -> None:
    def step(seconds: float, megabytes: int, trained: int) -> dict[str, float]:
        return {"seconds": seconds, "megabytes": megabytes, "trained": trained}

    evaluation = {"evaluation": {"seconds": 2.0, "megabytes": 512}}
    records: dict[str, Any] = {
        "daim/f30k": {
            "sizes": SIZES._asdict(),
            "fit": {
                "steps": [step(9, 512, 5), step(1, 512, 5), step(9, 1024, 8), step(3, 2048, 8)]
            },
            "validate": evaluation,
            "resume": {"global_step": 5, "steps": []},
            "processes": {"error": "killed"},
        }
    }
    assert table(records).splitlines()[2:] == [
        "| `daim/f30k` | 2 | 3.00 | 2.0 GiB | 3 × 15 | 2.0 | 0.5 GiB |  |  |  "
        "| to step 5 | failed |",
        "| `daim/f30k`, frozen backbones | 2 | 1.00 | 0.5 GiB |  |  |  |  |  |  |  |  |",
    ]
