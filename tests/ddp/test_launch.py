"""The ways to start several processes, and how they end when one of them fails."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from processes import SUPPORT, run_all

from itmkit.cli import main

CONFIG = """\
model:
  class_path: itmkit.systems.DAIM
  init_args:
    image_encoder:
      class_path: itmkit.nn.RegionProjection
      init_args: {in_dim: 437, dim: 16, hidden_dim: 16}
    text_encoder:
      class_path: itmkit.nn.BiGRU
      init_args: {vocab_size: 64, embed_dim: 16, dim: 16}
    optimizer:
      class_path: torch.optim.SGD
      init_args: {lr: 0.02}
data:
  class_path: itmkit.data.ImageTextData
  init_args:
    dataset:
      class_path: itmkit.data.ShapesDataset
      init_args: {length: 8, regions: true}
    batch_size: 4
trainer:
  max_epochs: 1
  accelerator: cpu
  enable_progress_bar: false
  enable_model_summary: false
"""
FAILING = """\
import os, signal
from itmkit.data.dataset import BadSampleError
from tiny_matcher import TinyDataset

class Failing(TinyDataset):
    def __init__(self, split: str, how: str, who: int) -> None:
        super().__init__(split)
        self.how = how
        self.fails = split == "train" and who == int(os.environ.get("LOCAL_RANK", 0))
        self.left = 2  # images that it has
        if self.fails and how == "open":
            raise FileNotFoundError(2, "No such file or directory", "captions.json")

    def image(self, row):
        self.left -= 1
        if self.fails and self.left < 0 and self.how == "image":
            raise BadSampleError(f"image {self.names[row]} is truncated")
        if self.fails and self.left < 0 and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().image(row)
"""
ITMKIT = [sys.executable, "-m", "itmkit"]
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
TWO_NODES = ["--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["itmkit"])
    Path("tiny.yaml").write_text(CONFIG)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def weights(name: str) -> dict[str, torch.Tensor]:
    """Those at the end of the only run of a name."""
    (folder,) = Path("runs", name).glob("2*")
    assert (folder / "metrics.json").is_file()
    assert {path.name for path in Path("runs", name).iterdir()} == {folder.name, "latest"}
    state: dict[str, torch.Tensor] = torch.load(
        folder / "checkpoints/last.ckpt", weights_only=True
    )["state_dict"]
    return state


def fit(name: str) -> list[str]:
    return ["fit", "--config=tiny.yaml", f"--name={name}", "--trainer.precision=64-true"]


def assert_same_weights(name: str, expected: dict[str, torch.Tensor]) -> None:
    found = weights(name)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-8, rtol=1e-8, msg=key)


@pytest.fixture
def expected(_here: None) -> dict[str, torch.Tensor]:
    """The weights that one process ends with."""
    main([*fit("alone"), "--data.batch_size=8"])
    return weights("alone")


def test_two_nodes_of_torchrun(expected: dict[str, torch.Tensor]) -> None:
    port = free_port()
    run_all(
        [
            (
                [
                    *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2"),
                    *(f"--node-rank={node}", "--nproc-per-node=1"),
                    *("--master-addr=127.0.0.1", f"--master-port={port}"),
                    *("-m", "itmkit", *fit("nodes"), *TWO_NODES),
                ],
                {},
            )
            for node in range(2)
        ]
    )
    assert_same_weights("nodes", expected)


@pytest.mark.long
def test_two_nodes_without_torchrun(expected: dict[str, torch.Tensor]) -> None:
    """As by hand on every machine, or by a cluster that sets these variables."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    run_all(
        [
            ([*ITMKIT, *fit("nodes"), *TWO_NODES], common | {"NODE_RANK": str(node)})
            for node in range(2)
        ]
    )
    assert_same_weights("nodes", expected)


@pytest.mark.long
def test_two_tasks_of_slurm(expected: dict[str, torch.Tensor]) -> None:
    """What srun sets for two tasks on two nodes."""
    port = free_port()
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_LOCALID": "0",
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    run_all(
        [
            (
                [*ITMKIT, *fit("tasks"), *TWO_NODES],
                slurm | {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node)},
            )
            for node in range(2)
        ]
    )
    assert_same_weights("tasks", expected)


@pytest.mark.long
def test_devices_of_one_machine(expected: dict[str, torch.Tensor]) -> None:
    run_all([([*ITMKIT, *fit("devices"), *TWO], {})])
    assert_same_weights("devices", expected)


@pytest.mark.long
@pytest.mark.parametrize("config", ["mate/shapes", "daim/shapes", "tvrn/shapes"])
def test_shipped_configurations_in_single_precision(config: str) -> None:
    """Four steps end near those of one process; metrics of the same weights are the same."""
    common = [
        *(f"--config={config}", "--untrained=false", "--trainer.accelerator=cpu"),
        *("--trainer.enable_progress_bar=false", "--data.eval_batch_size=3"),
        "--data.dataset.init_args.length={train: 40, val: 10, test: 31}",
    ]
    training = [
        *("fit", *common, "--trainer.max_steps=4", "--trainer.sync_batchnorm=true"),
        *("--model.optimizer=SGD", "--model.optimizer.lr=1e-2"),
    ]
    main([*training, "--name=alone", "--data.batch_size=16"])
    run_all([([*ITMKIT, *training, "--name=both", "--data.batch_size=8", *TWO], {})])
    expected, found = weights("alone"), weights("both")
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-3, rtol=1e-3, msg=key)

    (folder,) = Path("runs/alone").glob("2*")
    measuring = ["test", *common, f"--ckpt_path={folder}/checkpoints/best.ckpt"]
    main([*measuring, "--name=measured_alone"])
    run_all([([*ITMKIT, *measuring, "--name=measured_both", *TWO], {})])
    (one,) = Path("runs/measured_alone").glob("2*/metrics.json")
    (two,) = Path("runs/measured_both").glob("2*/metrics.json")
    assert two.read_text() == one.read_text()


def end_of(how: str, who: int) -> tuple[int, list[str]]:
    """Exit status and lines of stderr of a run with a process that fails; all are gone after it."""
    Path("failing.py").write_text(FAILING)
    config = yaml.safe_load(CONFIG)
    config["model"] = {"class_path": "tiny_matcher.TinyMatcher"}
    config["data"]["init_args"] |= {
        "dataset": {"class_path": "failing.Failing", "init_args": {"how": how, "who": who}},
        "batch_size": 1,
        "vocabulary_min_count": 1,
    }
    config["trainer"]["max_epochs"] = 50
    Path("failing.yaml").write_text(yaml.safe_dump(config))
    path = os.pathsep.join(map(str, (SUPPORT.parents[1], SUPPORT)))
    with open("stderr.txt", "w") as told:
        process = subprocess.Popen(
            [*ITMKIT, "fit", "--config=failing.yaml", *TWO],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=told,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=60)
            with suppress(ProcessLookupError):
                for _ in range(100):
                    os.killpg(process.pid, 0)
                    time.sleep(0.1)
                pytest.fail("a process lives on")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return code, Path("stderr.txt").read_text().splitlines()


PEER = "itmkit: error: another process of this run has ended; its own error says why"


@pytest.mark.parametrize(
    ("how", "who", "told"),
    [
        ("image", 1, r"itmkit: error: image \d.jpg is truncated"),
        pytest.param(
            *("image", 0, r"itmkit: error: image \d.jpg is truncated"), marks=pytest.mark.long
        ),
        pytest.param(
            *("open", 1, "itmkit: error: No such file or directory: 'captions.json'"),
            marks=pytest.mark.long,
        ),
        pytest.param("killed", 1, PEER, marks=pytest.mark.long),
    ],
)
def test_error_of_one_process_ends_all(how: str, who: int, told: str) -> None:
    code, lines = end_of(how, who)
    assert code != 0
    text = "\n".join(lines)
    assert "Traceback" not in text
    errors = [line for line in lines if "itmkit: error:" in line]
    (own,) = (line for line in errors if line != PEER or how == "killed")
    assert re.fullmatch(told, own)
