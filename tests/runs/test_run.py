"""A run without the command line; and without exact resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_cli
import torch
from lightning.pytorch import Trainer
from tiny_matcher import TinyDataset, TinyMatcher

from itmkit.checks import InputError
from itmkit.data import ImageTextData
from itmkit.retrieval import Gallery
from itmkit.runs import Run
from itmkit.training import BestCheckpoint, LastCheckpoint

pytestmark = pytest.mark.usefixtures("tiny_folder")


def tiny_run(folder: Path, **options: object) -> Run:
    best = BestCheckpoint(folder, filename="best", monitor="val/rsum", mode="max")
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        callbacks=[best, LastCheckpoint(dirpath=folder)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = ImageTextData(TinyDataset, batch_size=2, vocabulary_min_count=1)
    return Run(trainer, TinyMatcher(), data, folder)


def test_fit_then_test_of_the_best(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    run = tiny_run(folder)
    rows = run.fit()
    assert rows.keys() == {"untrained", "trained"}
    assert rows["trained"].on.checkpoint == "best.ckpt"
    tested = run.evaluate("test", str(folder / "best.ckpt"), untrained=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["val/rsum"] == pytest.approx(rows["trained"].recall["rsum"], abs=1e-4)
    assert metrics["test/rsum"] == pytest.approx(tested["trained"].recall["rsum"], abs=1e-4)
    assert metrics["about"]["test"]["step"] == rows["trained"].on.step
    assert tiny_cli.table_rows(capsys.readouterr().out) == ["untrained", "trained"]


def test_error_of_a_validation_without_a_split(tmp_path: Path) -> None:
    run = tiny_run(tmp_path / "mine")
    run.data.val_split = None
    with pytest.raises(InputError, match=r"val_split is None; expected the name of a split"):
        run.evaluate("validate")
    assert run.evaluate("test")["untrained"].recall


def test_predict(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    gallery = tiny_run(folder).predict()
    assert Gallery.load(folder).images.vector.equal(gallery.images.vector)


def test_error_before_the_first_step_removes_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs/mine"
    folder.mkdir(parents=True)
    run = tiny_run(folder)
    run.data.batch_size = 99
    with pytest.raises(ValueError, match="batch_size is 99"):
        run.fit()
    assert not folder.exists()


def test_without_exact_resume_checkpoints_are_those_of_lightning() -> None:
    exact, plain = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        for folder in (
            tiny_cli.run("fit", "--untrained=false"),
            tiny_cli.run("fit", "--untrained=false", "--exact_resume=false"),
        )
    )
    assert exact.keys() - plain.keys() == {"resume", "options"}
    assert all(plain["state_dict"][n].equal(value) for n, value in exact["state_dict"].items())


def test_what_is_not_resumed_exactly_is_warned_of() -> None:
    half = tiny_cli.run("fit", "--untrained=false", "--exact_resume=false")
    words = ("fit", f"--ckpt_path={half}", "--trainer.max_epochs=3")
    with pytest.warns(UserWarning, match="exact_resume is false: the run resumes as Lightning"):
        tiny_cli.run(*words, "--exact_resume=false")
    with pytest.warns(UserWarning, match="the checkpoint was saved without ExactResume"):
        rest = tiny_cli.run(*words)
    last = torch.load(rest / "checkpoints/last.ckpt", weights_only=True)
    assert (last["epoch"], "resume" in last) == (2, True)
