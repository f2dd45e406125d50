"""Under the name of a checkpoint there is always a whole one."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import files_of_at_most

from itmkit.cli import main
from itmkit.files import atomic_write, copy_file
from itmkit.training.checkpoints import AtomicCheckpointIO, LastCheckpoint

CONFIG = """\
model: {class_path: tiny_matcher.TinyMatcher}
data:
  class_path: itmkit.data.ImageTextData
  init_args: {dataset: tiny_matcher.TinyDataset, batch_size: 2, vocabulary_min_count: 1}
trainer:
  max_epochs: 3
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
untrained: false
"""


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new/one.ckpt"
    content = {"state_dict": {"weight": torch.randn(3)}, "epoch": 1}
    AtomicCheckpointIO().save_checkpoint(content, path)
    loaded = AtomicCheckpointIO().load_checkpoint(path, weights_only=True)
    assert loaded["state_dict"]["weight"].equal(content["state_dict"]["weight"])
    assert list(path.parent.iterdir()) == [path]


def test_error_of_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "one.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, path)
    with files_of_at_most(500), pytest.raises(OSError, match=r"File too large: .*one\.ckpt"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 2, "weight": torch.zeros(1000)}, path)
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_error_of_a_full_disk_in_a_run_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["itmkit"])
    Path("tiny.yaml").write_text(CONFIG)
    save = AtomicCheckpointIO.save_checkpoint

    def full_later(
        self: AtomicCheckpointIO, checkpoint: dict[str, Any], path: str, **options: Any
    ) -> None:
        if checkpoint["global_step"] > 4:
            monkeypatch.setattr(os, "fsync", no_space)
        save(self, checkpoint, path, **options)

    def no_space(number: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", full_later)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "tiny.yaml"])
    assert stop.value.code == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "itmkit: error" in line)
    (folder,) = Path("runs/tinymatcher-tiny").glob("2*/checkpoints")
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["best.ckpt", "last.ckpt"]
    assert line.startswith("itmkit: error: No space left on device: '")
    assert line.rpartition("/")[2] in ("best.ckpt'", "last.ckpt'")
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4


def test_copy_takes_its_name_at_the_end(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "folder/target"
    source.write_bytes(b"0123456789")
    with suppress(KeyboardInterrupt), atomic_write(target) as file:
        file.write(b"012")
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []
    copy_file(source, target)
    assert target.read_bytes() == source.read_bytes()


def test_error_of_a_period_below_one() -> None:
    for value in (0, 2.5):
        with pytest.raises(
            ValueError, match=f"every_n_train_steps is {value}; expected .*1 or more"
        ):
            LastCheckpoint(every_n_train_steps=value)
