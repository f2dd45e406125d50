"""A loss that is not finite ends the run and leaves the last good checkpoint."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from processes import run_ranks
from tiny_matcher import BreakingMatcher, TinyDataset, TinyMatcher
from torch import Tensor

from itmkit.cli import main
from itmkit.data import ImageTextData
from itmkit.systems import finite_loss
from itmkit.systems.finite_loss import FiniteLoss

# Two batches of two an epoch.
NOT_FINITE = (
    r"the training loss is not finite in step {step} \(epoch {epoch}, batch {batch}\): "
    r"contrast=nan, other=1, loss=nan; rows of the images in the training data: [0-3], [0-3]$"
)


class LateLoss(FiniteLoss):
    """Looks one step later, as on a GPU."""

    def watch(self, terms: Mapping[str, Tensor], image_ids: Tensor, *, step: str) -> None:
        self.check()
        values = torch.stack(list(terms.values())).detach()
        self._latest = finite_loss._Step(step, list(terms), values, None, image_ids)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itmkit.systems.matcher.FiniteLoss", LateLoss)


def fit(folder: Path, matcher: TinyMatcher, *, every: int = 1, **options: Any) -> None:
    """Four epochs with a checkpoint of every step."""
    callbacks = []
    if every:
        callbacks = [ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=every)]
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(every),
        callbacks=callbacks,
        **{"max_epochs": 4, "limit_val_batches": 0} | options,
    )
    trainer.fit(matcher, ImageTextData(TinyDataset, batch_size=2, vocabulary_min_count=1))


def saved(folder: Path) -> dict[str, dict[str, Any]]:
    """The checkpoints, every one of which can be loaded."""
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.ckpt")}


def assert_weights(matcher: TinyMatcher, weights: dict[str, Tensor]) -> None:
    for name, value in matcher.state_dict().items():
        assert value.isfinite().all()
        assert torch.equal(value, weights[name])


def test_run_stops_before_the_step_and_checkpoints_stay(tmp_path):
    matcher = BreakingMatcher(broken=5)
    with pytest.raises(ValueError, match=NOT_FINITE.format(step=5, epoch=2, batch=1)):
        fit(tmp_path, matcher)
    checkpoints = saved(tmp_path)
    assert set(checkpoints) == {f"step={step}" for step in range(1, 6)}
    assert_weights(matcher, checkpoints["step=5"]["state_dict"])


def test_gradient_accumulation(tmp_path):
    matcher = BreakingMatcher(broken=5)
    with pytest.raises(ValueError, match=NOT_FINITE.format(step=2, epoch=2, batch=1)):
        fit(tmp_path, matcher, accumulate_grad_batches=2)
    assert_weights(matcher, saved(tmp_path)["step=2"]["state_dict"])


def test_error_names_the_rows_of_the_batch(tmp_path):
    seen = []

    class Watched(BreakingMatcher):
        def loss(self, batch):
            seen.append(batch.image_ids.tolist())
            return super().loss(batch)

    with pytest.raises(ValueError, match="not finite") as error:
        fit(tmp_path, Watched(broken=3), every=0)
    assert str(error.value).endswith(f": {seen[3][0]}, {seen[3][1]}")


@pytest.mark.usefixtures("late")
def test_late_look_saves_nothing_of_the_broken_step(tmp_path):
    with pytest.raises(ValueError, match=NOT_FINITE.format(step=5, epoch=2, batch=1)):
        fit(tmp_path, BreakingMatcher(broken=5))
    checkpoints = saved(tmp_path)
    assert set(checkpoints) == {f"step={step}" for step in range(1, 6)}
    assert all(v.isfinite().all() for v in checkpoints["step=5"]["state_dict"].values())


@pytest.mark.usefixtures("late")
def test_late_look_is_at_the_next_step(tmp_path):
    matcher = BreakingMatcher(broken=4)
    with pytest.raises(ValueError, match=NOT_FINITE.format(step=4, epoch=2, batch=0)):
        fit(tmp_path, matcher, every=0)
    assert matcher.batches == 6


@pytest.mark.usefixtures("late")
@pytest.mark.parametrize("options", [{"max_steps": 4}, {"limit_val_batches": 1}])
def test_late_look_at_the_end_and_before_a_validation(tmp_path, options):
    matcher = BreakingMatcher(broken=3)
    with pytest.raises(ValueError, match=NOT_FINITE.format(step=3, epoch=1, batch=1)):
        fit(tmp_path, matcher, every=0, **options)
    assert matcher.batches == 4


@pytest.mark.usefixtures("late")
def test_nothing_can_be_saved_afterwards_until_the_next_fit(tmp_path):
    matcher = BreakingMatcher(broken=1)
    with pytest.raises(ValueError, match="not finite"):
        fit(tmp_path, matcher, every=0)
    for _ in range(2):
        with pytest.raises(ValueError, match="not finite in step 1"):
            matcher.on_save_checkpoint({})
    matcher.load_state_dict(TinyMatcher().state_dict())
    fit(tmp_path, matcher)
    assert len(saved(tmp_path)) == 8


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    """After a finite loss with gradients that are none."""
    with pytest.raises(ValueError, match=r"nothing is saved: the weights of 'image.weight' are"):
        fit(tmp_path, BreakingMatcher(broken=3, gradients=True))
    checkpoints = saved(tmp_path)
    assert set(checkpoints) == {"step=1", "step=2", "step=3"}
    assert all(v.isfinite().all() for v in checkpoints["step=3"]["state_dict"].values())


def half_precision() -> MixedPrecision:
    """Which Lightning gives on a GPU for 16-mixed; on the CPU it would take bf16."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))


def test_gradients_that_overflow_are_the_scalers_concern(tmp_path):
    scaler = half_precision()
    matcher = BreakingMatcher(broken=3, gradients=True)
    fit(tmp_path, matcher, plugins=[scaler])
    assert scaler.scaler.get_scale() == 2**15  # halved once
    steps = saved(tmp_path)
    before, after = (steps[f"step={step}"]["state_dict"] for step in (3, 4))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert_weights(matcher, steps["step=8"]["state_dict"])


def test_a_loss_that_is_not_finite_is_not_the_scalers_concern(tmp_path):
    with pytest.raises(ValueError, match=NOT_FINITE.format(step=3, epoch=1, batch=1)):
        fit(tmp_path, BreakingMatcher(broken=3), plugins=[half_precision()])
    assert set(saved(tmp_path)) == {"step=1", "step=2", "step=3"}


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_only_the_loss_decides(value, dtype):
    watch, ids = FiniteLoss(), torch.tensor([7, 9])
    terms = {"left out": torch.tensor(value), "loss": torch.tensor(1.5, dtype=dtype)}
    watch.watch(terms, ids, step="one")
    watch.check()
    terms["loss"] = torch.tensor(value, dtype=dtype)
    with pytest.raises(ValueError, match=re.escape(f"in two: left out={value}, loss={value}; ")):
        watch.watch(terms, ids, step="two")
    copy.deepcopy(watch).check()  # of a model that is trained anew


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_steps_are_watched_without_waiting():
    watch, ids = FiniteLoss(), torch.tensor([7, 9], device="cuda")
    loss = torch.ones((), device="cuda", requires_grad=True) * 1
    torch.cuda.set_sync_debug_mode("error")
    try:
        watch.watch({"loss": loss}, ids, step="one")
        watch.watch({"loss": loss * torch.nan}, ids, step="two")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(ValueError, match=r"in two: loss=nan; .*: 7, 9"):
        watch.watch({"loss": loss}, ids, step="three")


CONFIG = """\
model: {class_path: tiny_matcher.BreakingMatcher, init_args: {broken: 5}}
data:
  class_path: itmkit.data.ImageTextData
  init_args: {dataset: tiny_matcher.TinyDataset, batch_size: 2, vocabulary_min_count: 1}
trainer:
  max_epochs: 4
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
"""


def test_command_line_tells_it_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["itmkit"])
    Path("tiny.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "tiny.yaml", "--untrained", "false"])
    assert stop.value.code == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "itmkit: error" in text]
    expected = NOT_FINITE.format(step=5, epoch=2, batch=1)
    assert re.fullmatch(f"itmkit: error: {expected}", line)
    (folder,) = Path("runs").glob("*/2*")
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert all(value.isfinite().all() for value in last["state_dict"].values())
    whole = f"--ckpt_path={folder}/checkpoints/last.ckpt"
    main(["fit", "--config", "tiny.yaml", "--model.broken=99", whole])
    assert "trained" in capsys.readouterr().out


def run_rank(folder: Path) -> None:
    torch.set_num_threads(1)
    rank = os.environ["RANK"]
    try:
        fit(folder, BreakingMatcher(broken=2), strategy="ddp", devices=2)
    except ValueError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    os._exit(0)


def test_ddp_all_processes_stop(tmp_path):
    run_ranks(__file__, tmp_path)
    for rank in range(2):
        told = (tmp_path / f"{rank}.txt").read_text()
        assert "not finite in step 2 (epoch 2, batch 0)" in told
        assert re.search(
            rf"rows of the images of process {rank} in the training data: \d, \d$", told
        )
    assert set(saved(tmp_path)) == {"step=1", "step=2"}


if __name__ == "__main__":
    run_rank(Path(sys.argv[1]))
