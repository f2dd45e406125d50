"""A run with a pretrained text model goes on without the files that it began with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from text_models import save_text_model

from itmkit import pretrained
from itmkit.cli import main
from itmkit.systems import Matcher, load_run

pytestmark = pytest.mark.filterwarnings("ignore:.*are unknown to the TransformersTokenizer")


def part(path: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    name = save_text_model(tmp_path / "text")
    image = part("itmkit.nn.TimmGrid", model_name="test_byobnet", dim=8, image_size=32)
    text = part("itmkit.nn.TransformerText", name_or_path=name, dim=8, frozen=True)
    shapes = part("itmkit.data.ShapesDataset", image_size=32, length=12)
    tokenizer = part("itmkit.data.TransformersTokenizer", name_or_path=name)
    content = {
        "model": part("itmkit.systems.MATE", image_encoder=image, text_encoder=text),
        "data": part(
            "itmkit.data.ImageTextData",
            dataset=shapes,
            tokenizer=tokenizer,
            batch_size=4,
            caption_views=2,
        ),
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "default_root_dir": str(tmp_path / "runs"),
        },
        "name": "run",
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_evaluation_resume_and_load_run_need_no_pretrained_files(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["fit", "--config", str(config)])
    run = (config.parent / "runs/run/latest").resolve()
    shutil.rmtree(config.parent / "text")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(pretrained, "_reached", [])
    best, last = (str(run / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    main(["test", "--config", str(run / "config.yaml"), "--ckpt_path", best])
    model, data = load_run(run)
    assert data.tokenizer.encode("a red circle").ids[0] == 2
    weights = torch.load(best, weights_only=True)["state_dict"]
    assert all(torch.equal(weights[name], own) for name, own in model.state_dict().items())
    again = Matcher.load_from_checkpoint(best)
    assert all(torch.equal(weights[name], own) for name, own in again.state_dict().items())
    main(["fit", "--config", str(config), "--init_from", best, "--trainer.max_steps", "1"])
    main(["fit", "--config", str(config), "--ckpt_path", last, "--trainer.max_epochs", "2"])
    capsys.readouterr()
    for command in (
        ["fit"],
        ["validate"],
        ["test", "--ckpt_path", best, "--untrained", "true"],  # needs the weights of the start
    ):
        with pytest.raises(SystemExit) as caught:
            main([command[0], "--config", str(config), *command[1:]])
        assert caught.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert "name_or_path is" in error
        assert "cannot be reached" in error
