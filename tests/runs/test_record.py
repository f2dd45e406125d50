from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_cli import run

import itmkit
from itmkit.configs.flat import flat_options
from itmkit.runs.record import count_parameters, git_state

pytestmark = pytest.mark.usefixtures("tiny_folder")


@pytest.mark.parametrize("command", ["fit", "test"])
def test_every_logger_has_the_configuration(command: str) -> None:
    folder = run(command, "--model.rate", "0.25", "--untrained=true")
    told = yaml.safe_load((folder / "hparams.yaml").read_text())
    assert told == flat_options(yaml.safe_load((folder / "config.yaml").read_text()))
    assert told["model.rate"] == 0.25
    assert told["trainer.max_epochs"] == 2
    curves = EventAccumulator(str(folder)).Reload()
    assert "_hparams_/session_start_info" in curves.PluginTagToContent("hparams")


def test_environment_of_a_run() -> None:
    folder = run("fit", "--name", "a b", "--untrained=false")
    told = yaml.safe_load((folder / "environment.yaml").read_text())
    assert told["command"] == "itmkit fit --config tiny.yaml --name 'a b' --untrained=false"
    assert told["versions"]["itmkit"] == itmkit.__version__
    assert {"python", "torch", "lightning", "transformers", "timm"} <= told["versions"].keys()
    assert told["parameters"] == {"all": 3 * 4 + 4 + 16 * 4, "trained": 3 * 4 + 4 + 16 * 4}
    assert told["processor"].endswith("cores")
    assert told["processes"] == 1
    assert told["git"] is None


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_commit_of_the_working_folder(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(
            ["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    assert git_state(tmp_path) is None  # no commit yet
    git("add", "tiny.yaml")
    git("commit", "-qm", "one")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed": False}
    (tmp_path / "tiny.yaml").write_text("changed")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD"), "changed": True}


def test_parameters_that_are_not_trained_or_not_there() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3).requires_grad_(False), torch.nn.LazyLinear(1))
    assert count_parameters(model) == {"all": 9, "trained": 0}
