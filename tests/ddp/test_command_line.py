"""`itmkit fit` and `test` in two processes end as in one that reads the same global batches."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import timm
import torch
import yaml
from pictures import COLOURS, save_picture
from processes import leave, run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:20 photos to train on will hardly")
DIM = 16
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
# Seven images to validate on and nine to test on: shares of two processes are not even.
LENGTHS = {"train": 8, "val": 7, "test": 9}


def part(class_path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": arguments}


def configuration(
    system: str,
    image_encoder: dict[str, Any] | None = None,
    text_encoder: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """A run of two epochs of five steps; on regions, where no encoder of pixels is given."""
    regions = image_encoder is None
    image_encoder = image_encoder or part(
        "itmkit.nn.RegionProjection", in_dim=437, dim=DIM, hidden_dim=DIM
    )
    words = part("itmkit.nn.BiGRU", vocab_size=64, embed_dim=DIM, dim=DIM)
    optimizer = part("torch.optim.SGD", lr=0.02, momentum=0.9)
    model = part(
        f"itmkit.systems.{system}",
        image_encoder=image_encoder,
        text_encoder=text_encoder or words,
        optimizer=optimizer,
        **options,
    )
    data = data or part(
        "itmkit.data.ImageTextData",
        dataset=part("itmkit.data.ShapesDataset", length=LENGTHS, image_size=32, regions=regions),
        batch_size=4,
        eval_batch_size=3,
        caption_views=2 if system == "MATE" else 1,
        distinct_captions=True,
        relation_threshold=0.2 if system == "TVRN" and regions else None,
    )
    training = {
        "max_epochs": 2,
        "accelerator": "cpu",
        "precision": "64-true",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return {"model": model, "data": data, "trainer": training | (trainer or {})}


MATE: dict[str, Any] = {
    "fusion": part(
        "itmkit.nn.FusionEncoder",
        dim=DIM,
        num_layers=1,
        num_heads=2,
        dropout=0.0,
        attention_dropout=0.0,
    ),
    "hubness_correction": part("itmkit.nn.HubnessCorrection", size=6, neighbours=2),
    "token_drop": 0.0,
    "triplet_weight": 0.05,
    "momentum": 0.9,
    "queue_size": 40,
    "warmup": 3,
    "warmup_unit": "step",
    "rerank_top_k": 4,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 64,
    "hidden_size": DIM,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": DIM,
}
GRID = {"model_name": "test_byobnet", "dim": DIM, "image_size": 32, "out_index": 2}
CONFIGURATIONS = {
    "mate": configuration("MATE", **MATE),
    "daim": configuration("DAIM"),
    "tvrn": configuration("TVRN", reasoning="saf", similarity_dim=8),
    # Parameters without gradient: all of two backbones, BatchNorm among them.
    "frozen": configuration(
        "MATE",
        part("itmkit.nn.TimmGrid", **GRID, frozen=True),
        part("itmkit.nn.TransformerText", config=BERT, dim=DIM, frozen=True),
        **MATE,
    ),
    # Parameters without gradient, and others that no output depends on, in the first epoch.
    # A backbone whose BatchNorm layers, with activations in them, learn from the global batch.
    "batch_norm": configuration(
        "DAIM",
        part("itmkit.nn.TimmGrid", **GRID),
        trainer={"sync_batchnorm": True},
    ),
    # A backbone without gradient in the first epoch.
    "freeze_until": configuration(
        "DAIM",
        part("itmkit.nn.TimmGrid", model_name="test_vit", dim=DIM, image_size=32, positions=True),
        trainer={
            "callbacks": [
                part("itmkit.callbacks.FreezeUntil", submodules=["image_encoder.backbone"], until=1)
            ]
        },
    ),
    # Two stages, each with losses that are learnt, and negatives of the whole split; a head that
    # reads another output of the fusion than its own score.
    "mate_stages": configuration(
        "MATE",
        fusion=part("itmkit.nn.CrossAttentionFusion", dim=DIM, num_heads=2, dropout=0.0),
        matching_head=part("itmkit.nn.MatchingHead", dim=DIM),
        triplet=part("itmkit.losses.InfoNCELoss", learnt=True),
        fusion_loss=part("itmkit.losses.SigLIPLoss", temperature=1.0, bias=0.0),
        fusion_group=4,
        fusion_start=5,
        token_drop=0.0,
        momentum=0.9,
        rerank_top_k=4,
        rerank_weight=None,
        trainer={
            "callbacks": [
                part("itmkit.callbacks.HardNegativeMiner", group_size=4, start_epoch=1, top_k=4)
            ]
        },
    ),
    # Features that one of the processes extracts, once, and all read.
    "photos": configuration(
        "DAIM",
        part("itmkit.nn.RegionProjection", in_dim=256, dim=DIM, hidden_dim=DIM),
        data=part(
            "itmkit.frozen_features.FrozenFeatureData",
            dataset=part("itmkit.data.CaptionedFolder", photos="photos", captions="captions.csv"),
            image_model="test_byobnet",
            image_checkpoint="image.pt",
            cache="cache",
            batch_size=4,
            eval_batch_size=3,
            vocabulary_min_count=1,
        ),
    ),
}


TESTED = ("mate", "daim", "tvrn")


def run(*options: str) -> None:
    """Train each, then test the best checkpoint of some."""
    from itmkit.cli import main

    for name in CONFIGURATIONS:
        common = ["--config", f"{name}.yaml", "--name", name, *options]
        main(["fit", *common])
        if name in TESTED:
            best = next(Path(f"runs/{name}").glob("2*")) / "checkpoints/best.ckpt"
            words = ["--ckpt_path", str(best), "--untrained=true", "--protocol=3"]
            main(["test", *common, *words])


def prepare(folder: Path) -> Path:
    for name, content in CONFIGURATIONS.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    rows = ["file_name,caption,split"]
    for row in range(27):
        colour = list(COLOURS)[row % 4]
        save_picture(folder / f"photos/{row}.jpg", colour, shade=row)
        rows.append(f"{row}.jpg,a {colour} circle,{'train' if row < 20 else 'val'}")
    (folder / "captions.csv").write_text("\n".join(rows))
    torch.manual_seed(0)
    torch.save(timm.create_model("test_byobnet").state_dict(), folder / "image.pt")
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of one process that has twice the batch size."""
    folder = prepare(tmp_path_factory.mktemp("alone"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["itmkit"])
        patch.chdir(folder)
        run("--data.batch_size=8")
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs of two processes, as torchrun starts them, and what each printed."""
    folder = prepare(tmp_path_factory.mktemp("both"))
    run_ranks(__file__, folder)
    return folder


def the_run(folder: Path, name: str, command: str = "fit") -> Path:
    """The only folder of a command."""
    found = (folder / "runs" / name).glob("2*")
    (one,) = (path for path in found if path.name.endswith("-test") == (command == "test"))
    return one


def tensors(value: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in a checkpoint, with where they are."""
    if isinstance(value, torch.Tensor):
        yield path, value
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            # The arguments of a callback are part of its name, and paths of runs have their time.
            name = Path(str(key).partition("{")[0]).name
            yield from tensors(inner, f"{path}/{name}")


def assert_same_run(found: Path, expected: Path, tolerance: float) -> None:
    """Weights, optimizer, teacher, queue, margin and all that was logged."""
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks")
    checkpoints = [
        torch.load(run / "checkpoints/last.ckpt", weights_only=True) for run in (found, expected)
    ]
    ends = [dict(tensors({name: one[name] for name in kept})) for one in checkpoints]
    assert ends[0].keys() == ends[1].keys()
    for name, tensor in ends[1].items():
        torch.testing.assert_close(ends[0][name], tensor, atol=tolerance, rtol=tolerance, msg=name)
    tables = [list(csv.DictReader((run / "metrics.csv").open())) for run in (found, expected)]
    assert len(tables[0]) == len(tables[1])
    for row, same in zip(*tables, strict=True):
        for column, value in same.items():
            assert (row[column] == "") == (value == ""), column
            if value:
                limit = tolerance if column.startswith("train/") else 0.0
                assert float(row[column]) == pytest.approx(float(value), rel=limit, abs=limit)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ddp_fit_is_that_of_one_process(both: Path, alone: Path, name: str) -> None:
    assert_same_run(the_run(both, name), the_run(alone, name), 1e-8)


@pytest.mark.parametrize(
    ("name", "command"),
    [*((name, "fit") for name in CONFIGURATIONS), *((name, "test") for name in TESTED)],
)
def test_ddp_metrics_are_exactly_those_of_one_process(
    both: Path, alone: Path, name: str, command: str
) -> None:
    found, expected = (
        json.loads((the_run(folder, name, command) / "metrics.json").read_text())
        for folder in (both, alone)
    )
    for metrics in (found, expected):
        for about in metrics["about"].values():  # each measured the checkpoint of its own run
            about["checkpoint"] = Path(about["checkpoint"]).name
    assert found == expected
    if command == "test":
        assert found["about"]["test"]["protocol"] == "3 folds"
        folds = [found[f"test/fold_{number}/rsum"] for number in (1, 2, 3)]
        assert found["test/rsum"] == pytest.approx(sum(folds) / 3, abs=1e-3)
    assert {"fit": "val/rsum", "test": "test/rsum"}[command] in found


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_ddp_weights_have_moved(both: Path, name: str) -> None:
    """What is compared is not the start."""
    last = torch.load(the_run(both, name) / "checkpoints/last.ckpt", weights_only=True)
    (optimizer,) = last["optimizer_states"]
    moments = [state["momentum_buffer"] for state in optimizer["state"].values()]
    assert len(moments) == len(optimizer["param_groups"][0]["params"])
    assert all(moment.any() for moment in moments)
    if name in ("mate", "frozen"):
        assert (last["state_dict"]["queue.ids"] >= 0).all()


def test_ddp_one_process_writes_and_prints(both: Path) -> None:
    for name in CONFIGURATIONS:
        fit = the_run(both, name)
        assert sorted(path.name for path in fit.glob("checkpoints/*")) == ["best.ckpt", "last.ckpt"]
        tables = list((both / "runs" / name).rglob("metrics.csv"))
        assert len(tables) == 1 + (name in TESTED)
        events = [path.name.split(".") for path in fit.glob("events.out.tfevents*")]
        assert len({process for *_, process, _ in events}) == 1
    told = [(both / f"{rank}.txt").read_text() for rank in range(2)]
    assert told[0].count("image to text") == len(CONFIGURATIONS) + len(TESTED)
    assert told[0].count("features of") == 2  # of two splits
    assert told[1] == ""
    given = {"photos", "captions.csv", "image.pt", *(f"{name}.yaml" for name in CONFIGURATIONS)}
    assert {path.name for path in both.iterdir()} == given | {"0.txt", "1.txt", "cache", "runs"}
    assert len(list(both.glob("cache/*/complete"))) == 2


if __name__ == "__main__":
    torch.set_num_threads(1)
    arguments, sys.argv = sys.argv[1:], ["itmkit"]
    os.chdir(arguments[0])
    never = patch("itmkit.distributed.leave", lambda: None)  # the processes meet once
    with open(f"{os.environ['RANK']}.txt", "w") as told, redirect_stdout(told), never:
        run(*TWO)
    leave()
