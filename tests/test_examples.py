"""The examples are run."""

from __future__ import annotations

import os
import shutil
from importlib import import_module
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, blocks

from itmkit.cli import main


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


def test_system_of_the_page_is_trained_by_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the configuration that the page shows."""
    (block,) = (one for one in blocks(PAGES["docs/extend.md"], "python") if "BiasedCosine" in one)
    (tmp_path / "mine.py").write_text(block)
    (configuration,) = blocks(PAGES["docs/extend.md"], "yaml")
    (tmp_path / "mine.yaml").write_text(configuration)
    monkeypatch.chdir(tmp_path)
    few = ["--data.dataset.init_args.length", "20", "--data.batch_size", "16"]
    main(["fit", "--config", "mine.yaml", "--trainer.max_steps", "2", *few])
    assert len(list(tmp_path.glob("runs/biasedcosine-mine/2*/metrics.json"))) == 1


@pytest.mark.extras
@pytest.mark.filterwarnings("ignore:tokenizer.max_length is 64")
@pytest.mark.filterwarnings("ignore:.*are unknown to the TransformersTokenizer")
def test_lora_trains_its_matrices_alone_and_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    import torch
    from clip_models import save_clip
    from pictures import save_karpathy
    from transformers import AutoModel

    import itmkit

    monkeypatch.syspath_prepend(ROOT / "examples")
    lora = import_module("lora")
    save_clip(tmp_path / "model")
    _, photos = save_karpathy(tmp_path)
    quiet = {"enable_progress_bar": False, "logger": False, "enable_checkpointing": False}
    paths = [tmp_path / name for name in ("model", "data.json", "images", "tuned")]
    lora.main(*map(str, paths), batch_size=8, accelerator="cpu", max_steps=2, **quiet)
    before = AutoModel.from_pretrained(tmp_path / "model").state_dict()
    after = AutoModel.from_pretrained(tmp_path / "tuned").state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.partition(".")[0] for name in changed} == {"text_model", "vision_model"}
    assert all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)
    scores = itmkit.load(tmp_path / "tuned").scores([photos / "0.jpg"], ["a red dog", "cat"])
    assert scores.isfinite().all()
