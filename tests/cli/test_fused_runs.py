"""The second stage of a fused run, by the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import differences, everything

from itmkit.cli import main

# An epoch has 5 steps; the fusion branch starts in the third, groups of rivals in the fourth.
FUSED = """\
--config mate/shapes_fused --untrained false --name fused
--model.fusion_start 7 --model.lr_scheduler.restarts [7] --model.lr_scheduler.warmup_steps 2
--data.dataset.length 16 --data.batch_size 16
--trainer.max_steps 21 --trainer.accelerator cpu
--trainer.enable_progress_bar false --trainer.enable_model_summary false
""".split()


@pytest.mark.parametrize(
    "batches", [pytest.param(9, marks=pytest.mark.long), 18]
)  # before and after the first groups
def test_second_stage_is_resumed_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path, batches: int
) -> None:
    monkeypatch.chdir(tmp_path)
    stop = (
        f"--trainer.callbacks.path={tmp_path / 'stop.ckpt'} --trainer.callbacks.batches={batches}"
    )
    main(["fit", *FUSED, "--trainer.callbacks+=stopped_runs.Stop", *stop.split()])
    main(["fit", *FUSED, "--ckpt_path", "stop.ckpt"])
    resumed = Path("runs/fused/latest").resolve()
    assert differences(everything(resumed), everything(whole)) == []
    fitted = torch.load(resumed / "checkpoints/last.ckpt", weights_only=True)["second_stage"]
    assert 0 <= fitted["weight"] <= 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("whole"))
        main(["fit", *FUSED])
        return Path("runs/fused/latest").resolve()
