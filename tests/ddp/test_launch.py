"""The ways to start several processes, and how they end when one of them fails."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from processes import SUPPORT, run_all
from tiny_runs import differences, everything, rows, runs, write_config

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
      init_args: {embed_dim: 16, dim: 16}
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
from itmkit.data.images import BadSampleError
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
SIGNALLING = """\
import os, signal
from lightning.pytorch import Callback

class Signal(Callback):
    def __init__(self, number: int, who: int, place: str, count: int) -> None:
        self.number, self.who, self.place, self.left = number, who, place, count

    def reached(self, trainer, place):
        self.left -= place == self.place
        if self.left == 0 and place == self.place:
            if self.who < 0 and trainer.global_rank == 0:
                os.killpg(0, self.number)
            elif self.who == trainer.global_rank:
                os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, *args):
        self.reached(trainer, "step")

    def on_validation_batch_start(self, trainer, *args):
        self.reached(trainer, "validate")
"""
REMEMBERING = """\
import torch
from lightning.pytorch import Callback

class Remember(Callback):
    left = 1

    def on_train_batch_start(self, trainer, *args):
        if self.left:
            path = f"rank{trainer.global_rank}-step{trainer.global_step}.pt"
            torch.save(torch.get_rng_state(), path)
        self.left = 0
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


def slurm_task(node: int, port: str) -> dict[str, str]:
    """What srun sets for one of two tasks on two nodes."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2",
        "SLURM_LOCALID": "0",
        "SLURM_PROCID": str(node),
        "SLURM_NODEID": str(node),
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


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
    port = free_port()
    run_all([([*ITMKIT, *fit("tasks"), *TWO_NODES], slurm_task(node, port)) for node in range(2)])
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
    code, told = run_session(Path(), "fit", "--config=failing.yaml", *TWO)
    return code, told.splitlines()


def run_session(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    """Exit status and stderr of a command that starts other processes; all are gone after it."""
    path = os.pathsep.join(map(str, (SUPPORT.parents[1], SUPPORT)))
    with tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(
            [*ITMKIT, *words],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.DEVNULL,
            stderr=told,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=90)
            with suppress(ProcessLookupError):
                for _ in range(100):
                    os.killpg(process.pid, 0)
                    time.sleep(0.1)
                pytest.fail("a process lives on")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        told.seek(0)
        return code, told.read()


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


# An epoch has 6 batches on each of two processes; three batches validate.
RUN = {"train": 15, "val": 21, "max_epochs": 2, "val_check_interval": 3}
EVERYBODY = -1


SAVING = "--last.every_n_train_steps=2"


def write_run(folder: Path, system: str, signalling: dict[str, Any] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "signalling.py").write_text(SIGNALLING)
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "devices": 2, "strategy": "ddp"}
    if signalling is not None:
        options["callbacks"] = [{"class_path": "signalling.Signal", "init_args": signalling}]
    write_config(folder, system, **RUN, **options)


def fit_two(folder: Path, system: str, signalling: dict[str, Any] | None = None) -> tuple[int, str]:
    """Train, or go on."""
    write_run(folder, system, signalling)
    last = Path("runs/tiny/latest/checkpoints/last.ckpt")
    words = [f"--ckpt_path={last}"] if (folder / last).is_file() else []
    return run_session(folder, "fit", "--config=tiny.yaml", SAVING, *words)


Whole = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run of a system that nobody stops, made once."""

    @cache
    def run(system: str) -> Path:
        folder = tmp_path_factory.mktemp(system)
        code, told = fit_two(folder, system)
        assert code == 0, told
        return folder

    return run


def check_resumes(folder: Path, system: str, unstopped: Path) -> None:
    """On as many processes, bit for bit."""
    code, told = fit_two(folder, system)
    assert code == 0, told
    check_same(folder, unstopped)


def check_same(folder: Path, unstopped: Path) -> None:
    """Two runs, the second resumed, are one that nobody stopped."""
    cut, whole = runs(folder), runs(unstopped)
    assert len(cut) == 2
    assert differences(everything(whole[-1]), everything(cut[-1])) == []
    assert rows(*cut) == rows(*whole)


@pytest.mark.parametrize(
    ("system", "who", "place", "count"),
    [
        ("MATE", 1, "step", 4),
        pytest.param("MATE", 0, "step", 5, marks=pytest.mark.long),
        pytest.param("TVRN", EVERYBODY, "step", 6, marks=pytest.mark.long),  # of an epoch the last
        pytest.param("DAIM", 1, "validate", 5, marks=pytest.mark.long),
        pytest.param("DAIM", EVERYBODY, "validate", 6, marks=pytest.mark.long),
    ],
)
def test_sigterm_to_one_or_all_saves_once_and_ends_all(
    system: str, who: int, place: str, count: int, whole: Whole
) -> None:
    cut = Path("cut")
    moment = {"number": int(signal.SIGTERM), "who": who, "place": place, "count": count}
    code, told = fit_two(cut, system, moment)
    assert code == 128 + signal.SIGTERM, told
    last = runs(cut)[0].relative_to(cut) / "checkpoints/last.ckpt"
    (line,) = (line for line in told.splitlines() if line.startswith("itmkit: "))
    assert line == f"itmkit: ended by SIGTERM; to go on: --ckpt_path {last}"
    assert "Traceback" not in told
    check_resumes(cut, system, whole(system))


@pytest.mark.parametrize(
    ("number", "who", "count"),
    [
        (signal.SIGKILL, EVERYBODY, 8),
        pytest.param(signal.SIGKILL, 1, 9, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, EVERYBODY, 10, marks=pytest.mark.long),  # as Ctrl-C does
        # right before a validation, for which each process has BatchNorm statistics of its own
        pytest.param(signal.SIGINT, 1, 3, marks=pytest.mark.long),
    ],
)
def test_killed_or_interrupted_and_resumed_on_two_processes(
    number: signal.Signals, who: int, count: int, whole: Whole
) -> None:
    cut = Path("cut")
    moment = {"number": int(number), "who": who, "place": "step", "count": count}
    code, told = fit_two(cut, "MATE", moment)
    assert code == 128 + number if number == signal.SIGINT else code not in (0, 143), told
    check_resumes(cut, "MATE", whole("MATE"))


@pytest.mark.long
@pytest.mark.parametrize(("place", "count"), [("step", 4), ("validate", 5)])
def test_slurm_requeues_two_tasks_once_and_they_go_on(place: str, count: int, whole: Whole) -> None:
    cut, log, program = Path("cut"), Path("log").absolute(), Path("bin/scontrol").absolute()
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\nkill -TERM $PPID\n')  # as SLURM does
    program.chmod(0o755)

    def job(**more: str) -> list[tuple[int, str]]:
        more["PATH"] = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        port = free_port()

        def task(node: int) -> tuple[int, str]:
            words = ("fit", "--config=tiny.yaml", SAVING, *TWO_NODES)
            return run_session(cut, *words, **slurm_task(node, port), **more)

        with ThreadPoolExecutor() as tasks:
            return list(tasks.map(task, range(2)))

    moment = {"number": int(signal.SIGUSR1), "who": EVERYBODY, "place": place, "count": count}
    write_run(cut, "MATE", moment)
    ended = job()
    assert [code for code, _ in ended] == [128 + signal.SIGTERM, 0], ended
    assert log.read_text() == "requeue 1\n"
    write_run(cut, "MATE")
    ended = job(SLURM_RESTART_COUNT="1")
    assert [code for code, _ in ended] == [0, 0], ended
    check_same(cut, whole("MATE"))


@pytest.mark.long
def test_resumed_on_another_number_of_processes(expected: dict[str, torch.Tensor]) -> None:
    Path("signalling.py").write_text(SIGNALLING)
    moment = {"number": int(signal.SIGTERM), "who": 0, "place": "step", "count": 3}
    stop = [f"--trainer.callbacks.{name}={value}" for name, value in moment.items()]
    words = fit("fewer")
    code, told = run_session(Path(), *words, *TWO, "--trainer.callbacks=signalling.Signal", *stop)
    assert code == 128 + signal.SIGTERM, told
    last = Path("runs/fewer/latest/checkpoints/last.ckpt")
    code, told = run_session(Path(), *words, "--data.batch_size=8", f"--ckpt_path={last}")
    assert code == 0, told
    found = torch.load(last, weights_only=True)["state_dict"]
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, atol=1e-6, rtol=0, msg=key)


def test_each_process_has_dropout_of_its_own_after_one_was_resumed_on_two() -> None:
    """Compared are random states at the first step: later ones depend on the batches, too."""
    Path("remembering.py").write_text(REMEMBERING)
    words = ["--name=more", "--trainer.callbacks=remembering.Remember"]
    words += ["--model.text_encoder.dropout=0.5"]
    main(["fit", "--config=tiny.yaml", *words, "--data.batch_size=8"])
    more = ["--trainer.max_epochs=2", "--ckpt_path=runs/more/latest"]
    code, told = run_session(Path(), "fit", "--config=tiny.yaml", *words, *TWO, *more)
    assert code == 0, told
    states = [torch.load(path, weights_only=True) for path in sorted(Path().glob("rank*.pt"))]
    assert len(states) == 3
    assert not any(one.equal(other) for one, other in combinations(states, 2))
