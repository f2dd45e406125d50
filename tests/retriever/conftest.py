"""Runs on real JPEGs, of one step: on pixels, and on features that were extracted before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pictures import save_karpathy

from itmkit.cli import main

DIM = 8


def part(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images``, ``data.json`` in Karpathy's form, and weights of a backbone."""
    import timm

    folder = tmp_path_factory.mktemp("photos")
    save_karpathy(folder)
    torch.save(timm.create_model("test_resnet").state_dict(), folder / "weights.pt")
    return folder


def fit(folder: Path, image_encoder: Any, dataset: Any, system: str = "MATE", **data: Any) -> Path:
    """Train for one step; the folder of the run."""
    text = part("itmkit.nn.BiGRU", embed_dim=DIM, dim=DIM)
    model: dict[str, Any] = {"image_encoder": image_encoder, "text_encoder": text}
    if system == "MATE":
        model |= {"fusion": part("itmkit.nn.FusionEncoder", dim=DIM, num_layers=1, num_heads=2)}
        model |= {"rerank_top_k": 2}
        model |= {"hubness_correction": part("itmkit.nn.HubnessCorrection", size=4, neighbours=2)}
    options = {"vocabulary_min_count": 1, "batch_size": 3, "caption_views": 2}
    content = {
        "seed_everything": 1,
        "model": part(f"itmkit.systems.{system}", **model),
        "data": part("itmkit.data.ImageTextData", dataset=dataset, **{**options, **data}),
        "trainer": {
            "max_steps": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "default_root_dir": str(folder / "runs"),
        },
        "name": "mine",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    main(["fit", "--config", str(folder / "config.yaml")])
    return folder / "runs/mine/latest"


@pytest.fixture(scope="session")
def pixel_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MATE on the pixels of the photos."""
    grid = part("itmkit.nn.TimmGrid", model_name="test_resnet", dim=DIM, image_size=32)
    files = {"annotations": str(photos / "data.json"), "images": str(photos / "images")}
    dataset = part("itmkit.data.KarpathyDataset", image_size=32, **files)
    return fit(tmp_path_factory.mktemp("pixels"), grid, dataset)


@pytest.fixture(scope="session")
def feature_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DAIM on features of the photos that ``itmkit extract`` wrote, as half precision."""
    folder = tmp_path_factory.mktemp("features")
    known = {"annotations": photos / "data.json", "images": photos / "images"}
    known |= {"output": folder / "features", "checkpoint": photos / "weights.pt"}
    words = [f"--{name}={value}" for name, value in known.items()]
    for split in ("train", "val"):
        fixed = ["--model=test_resnet", "--image_size=64", "--crop=0.9", "--device=cpu"]
        main(["extract", *words, *fixed, f"--split={split}"])
    width = np.load(folder / "features/val_ims.npy").shape[-1]
    regions = part("itmkit.nn.RegionProjection", in_dim=width, dim=DIM, hidden_dim=DIM)
    files = {"annotations": str(photos / "data.json"), "features": str(folder / "features")}
    dataset = part("itmkit.data.KarpathyDataset", **files)
    threshold = {"relation_threshold": 0.5}
    return fit(folder, regions, dataset, system="DAIM", caption_views=1, **threshold)
