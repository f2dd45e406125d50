"""Configurations of the three systems, so small that a run takes a second; and what runs leave."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
import yaml

DIM = 16
TEXT = {
    "class_path": "itmkit.nn.BiGRU",
    "init_args": {"embed_dim": DIM, "dim": DIM, "dropout": 0.1},
}
GRID = {
    "class_path": "itmkit.nn.TimmGrid",
    "init_args": {
        "model_name": "test_byobnet",
        "dim": DIM,
        "image_size": 32,
        "out_index": 2,
        "positions": True,
    },
}
REGIONS = {
    "class_path": "itmkit.nn.RegionProjection",
    "init_args": {"in_dim": 437, "dim": DIM, "hidden_dim": DIM},
}
PIXELS = {"class_path": "itmkit.data.ShapesDataset", "init_args": {"image_size": 32}}
SYSTEMS: dict[str, dict[str, Any]] = {
    "MATE": {
        "image_encoder": GRID,
        "text_encoder": TEXT,
        "fusion": {
            "class_path": "itmkit.nn.FusionEncoder",
            "init_args": {"dim": DIM, "num_layers": 1, "num_heads": 2},
        },
        "hubness_correction": {
            "class_path": "itmkit.nn.HubnessCorrection",
            "init_args": {"size": 5, "neighbours": 2},
        },
        "queue_size": 20,
        "momentum": 0.9,
        "warmup": 4,
        "warmup_unit": "step",
    },
    "DAIM": {
        "image_encoder": GRID,
        "text_encoder": TEXT,
        "loss": {
            "class_path": "itmkit.losses.AdaptiveMarginTripletLoss",
            "init_args": {"min_rows": 2},
        },
        "warmup": 4,
        "warmup_unit": "step",
    },
    "TVRN": {
        "image_encoder": REGIONS,
        "text_encoder": TEXT,
        "similarity_dim": 8,
        "dropout": 0.1,
    },
}


def write_config(
    folder: Path, system: str, *, train: int = 7, val: int = 8, **trainer: Any
) -> Path:
    """Write ``tiny.yaml``: 3 epochs of 5 batches of 6 captions unless told otherwise."""
    dataset = PIXELS
    if system == "TVRN":
        dataset = {"class_path": "related_shapes.RelatedShapes", "init_args": {}}
    length = {"train": train, "val": val, "test": val}
    config = {
        "seed_everything": 1,
        "model": {
            "class_path": f"itmkit.systems.{system}",
            "init_args": {
                **SYSTEMS[system],
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}},
                "lr_scheduler": {
                    "class_path": "itmkit.systems.WarmupCosine",
                    "init_args": {"warmup_steps": 3},
                },
                "lr_scheduler_interval": "step",
            },
        },
        "data": {
            "class_path": "itmkit.data.ImageTextData",
            "init_args": {
                "dataset": {
                    "class_path": dataset["class_path"],
                    "init_args": {**dataset["init_args"], "length": length},
                },
                "batch_size": 6,
                "eval_batch_size": 5,
                "caption_views": 2 if system == "MATE" else 1,
                "noise": {"class_path": "itmkit.data.CaptionNoise"},
            },
        },
        "trainer": {
            "max_epochs": 3,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        | trainer,
        "name": "tiny",
        "untrained": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def runs(folder: Path) -> list[Path]:
    """The run folders, the oldest first."""
    return sorted(path for path in (folder / "runs/tiny").glob("2*"))


def load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def everything(run: Path) -> dict[str, Any]:
    """All that the last checkpoint of a run holds, without names of folders and options."""
    content = load(run / "checkpoints/last.ckpt")
    del content["options"]["given"]
    states: dict[str, Any] = content["callbacks"]
    for name, state in states.items():
        if "Checkpoint" in name:
            states[name] = {
                key: state[key] for key in ("best_model_score", "kth_value", "current_score")
            }
    return content


def rows(*folders: Path) -> list[dict[str, str]]:
    """The rows of the tables of some runs; a row that several have is one."""
    found: list[dict[str, str]] = []
    for folder in folders:
        path = folder / "metrics.csv"
        with open(path, newline="") if path.exists() else open("/dev/null") as file:
            for row in csv.DictReader(file):
                told = {name: value for name, value in row.items() if value}
                if told not in found:
                    found.append(told)
    return sorted(found, key=lambda row: (int(row["step"]), sorted(row)))


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested values differ, tensors and numbers bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{where}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        return [d for key in one for d in differences(one[key], other[key], f"{where}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} items"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and one.equal(other)
        return [] if same else [f"{where}: tensors"]
    return [] if one == other else [f"{where}: {one} and {other}"]
