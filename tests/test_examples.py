"""What the documentation shows is run: blocks of docs/extend.md, and the example of a system."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from itmkit.cli import main

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.+?)```", (ROOT / "docs/extend.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.search(r"class (\w+)|$", block)[1])
def test_blocks_of_extend(block: str, tmp_path: Path) -> None:
    (tmp_path / "block.py").write_text(block)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, tmp_path / "block.py"], check=True, env=environment)


def test_own_system_is_trained_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("own_system.py", "own_system.yaml"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    few = ["--data.dataset.init_args.length", "20", "--data.batch_size", "16"]
    rates = ["--model.lr_factors", "{image_encoder: 0.5}"]  # an argument of Matcher
    main(["fit", "--config", "own_system.yaml", "--trainer.max_steps", "2", *few, *rates])
    (best,) = tmp_path.glob("runs/twotowers-own_system/2*/checkpoints/best.ckpt")
    main(["test", "--ckpt_path", os.fspath(best), *few])
