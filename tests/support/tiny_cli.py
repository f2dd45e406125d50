"""The command line in this process, with the tiny system of tiny_matcher in the working folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from itmkit.cli import main

CONFIG = """\
model:
  class_path: tiny_matcher.TinyMatcher
  init_args: {dim: 4}
data:
  class_path: itmkit.data.ImageTextData
  init_args:
    dataset: tiny_matcher.TinyDataset
    batch_size: 2
    vocabulary_min_count: 1
trainer:
  max_epochs: 2
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
"""


@pytest.fixture
def tiny_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new working folder that holds ``tiny.yaml``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["itmkit"])
    Path("tiny.yaml").write_text(CONFIG)
    return tmp_path


def run(command: str, *options: str) -> Path:
    """Run a command with the tiny configuration; the folder it made."""
    before = set(Path("runs").glob("*/*"))
    main([command, "--config", "tiny.yaml", *options])
    (folder,) = {path for path in Path("runs").glob("*/*") if not path.is_symlink()} - before
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run what must be refused in one line, with nothing left behind; that line."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    assert not Path("runs").exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if "itmkit: error:" in line]
    (line,) = lines
    return line.removeprefix("itmkit: error: ")


def table_rows(text: str) -> list[str]:
    """Names of the rows of the recall table in what was printed, without folds and intervals."""
    body = text[text.index("image to text") :].split("---\n")[1].split("\n\n")[0]
    return [line.split()[0] for line in body.strip().splitlines() if line[0] != " "]
