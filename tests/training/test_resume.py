"""A run that is killed and resumed is the run that was not, bit for bit: real processes, SIGKILL.

All through the command line, with the command that README documents; but for what a checkpoint of
another number of processes becomes, at the end.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import Command, Ended, Kill, run_command
from lightning.pytorch import LightningModule, seed_everything
from picture_files import as_structs, jpegs, write_parquet, write_tar
from stopped_runs import BATCHES, Batches, Stop, assert_equal, snapshot, trainer_of
from tiny_runs import differences, everything, load, rows, runs, write_config
from torch.utils.data import DataLoader, TensorDataset

from itmkit.training import ExactResume, LastCheckpoint

LAST = "runs/tiny/latest/checkpoints/last.ckpt"
EVERY_TWO = ("--last.every_n_train_steps", "2")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs that nobody stops, each made once."""

    @cache
    def make(system: str, options: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        write_config(folder, system, **json.loads(options))
        ended = fit(folder)
        assert ended.code == 0, ended.err
        return folder

    return lambda system, options: make(system, json.dumps(options))


def resume(folder: Path) -> list[str]:
    """The words that README says, where there is something to go on from."""
    return ["--ckpt_path", LAST] if (folder / LAST).is_file() else []


def fit(folder: Path, *words: str, **options: Any) -> Ended:
    """Train, or go on."""
    return run_command(folder, "fit", "--config", "tiny.yaml", *words, *resume(folder), **options)


def check_same(whole: Path, cut: Path) -> None:
    ends = [runs(folder)[-1] for folder in (whole, cut)]
    last, resumed = (everything(end) for end in ends)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops", "resume"} <= last.keys()
    assert differences(last, resumed) == []
    bests = [load(end / "checkpoints/best.ckpt")["state_dict"] for end in ends]
    assert differences(*bests) == []
    assert rows(*runs(cut)) == rows(*runs(whole))
    assert (ends[0] / "metrics.json").read_text() == (ends[1] / "metrics.json").read_text()


def check_readable(folder: Path) -> None:
    for run in runs(folder):
        for path in run.glob("checkpoints/*.ckpt"):
            if not path.name.startswith("."):
                assert "state_dict" in load(path)


# An epoch has 5 batches.
ACCUMULATES = {"accumulate_grad_batches": 2, "val_check_interval": 2}
INSIDE = {"log_every_n_steps": 2, "val_check_interval": 2}
STEPS = {"max_steps": 14}
CASES = [
    ("MATE", ACCUMULATES, Kill("write", 4)),
    ("DAIM", STEPS, Kill("validate", 4)),
    ("TVRN", INSIDE, Kill("table", 1)),
    ("TVRN", INSIDE, Kill("log", 9)),
]
MORE_CASES = [
    ("MATE", {}, Kill("step", 9)),
    ("DAIM", STEPS, Kill("rename", 6)),
] + [
    (system, options, Kill(place, count))
    for system in ("MATE", "DAIM", "TVRN")
    for options in (ACCUMULATES, INSIDE, STEPS | {"accumulate_grad_batches": 3, "max_steps": 5})
    for place, count in (
        ("step", 1),
        ("step", 8),
        ("validate", 2),
        ("write", 1),
        ("rename", 3),
        ("renamed", 1),
        ("renamed", 3),
        ("log", 4),
    )
]
LONG = [pytest.param(*case, marks=pytest.mark.long) for case in MORE_CASES]


@pytest.mark.parametrize(("system", "options", "kill"), CASES + LONG)
def test_killed_and_resumed_is_the_run_that_was_not(
    tmp_path: Path, whole: Any, system: str, options: dict[str, Any], kill: Kill
) -> None:
    cut = tmp_path / "cut"
    write_config(cut, system, **options)
    killed = fit(cut, *EVERY_TWO, kill=kill)
    assert killed.code == -signal.SIGKILL, killed.err
    check_readable(cut)
    assert list(cut.rglob(".*.part")) or kill.place not in ("write", "rename", "table")
    resumed = fit(cut, *EVERY_TWO)
    assert resumed.code == 0, resumed.err
    check_same(whole(system, options), cut)


def kill_at_random_moments(cut: Path, seconds: float, *words: str, most: int) -> list[float]:
    """Kill and resume a run again and again, then let it end; the moments."""
    moments = []
    for _ in range(most):
        command = Command(cut, "fit", "--config", "tiny.yaml", *words, *resume(cut))
        moments.append(random.uniform(0.3, seconds))
        command.process.join(moments[-1])
        command.process.kill()  # nothing where it has ended
        killed = command.end()
        if killed.code == 0:
            return moments
        assert killed.code == -signal.SIGKILL, killed.err
        check_readable(cut)
    ended = fit(cut, *words)
    assert ended.code == 0, ended.err
    return moments


def test_killed_at_random_moments(tmp_path: Path, whole: Any) -> None:
    cut = tmp_path / "cut"
    write_config(cut, "MATE")
    moments = kill_at_random_moments(cut, 1.0, *EVERY_TWO, most=2)
    print("killed after", moments)
    check_same(whole("MATE", {}), cut)


@pytest.mark.long
@pytest.mark.parametrize("system", ["MATE", "DAIM", "TVRN"])
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_many_random_moments(
    tmp_path: Path, whole: Any, system: str, workers: int
) -> None:
    words = (*EVERY_TWO, "--data.num_workers", str(workers))
    for number in range(int(os.environ.get("ITMKIT_LONG_KILLS", "3"))):
        cut = tmp_path / f"cut{number}"
        write_config(cut, system)
        moments = kill_at_random_moments(cut, 1.0 + 2 * workers, *words, most=5)
        print("killed after", moments)
        check_same(whole(system, {}), cut)


def packed_photos(folder: Path, kind: str) -> None:
    """A configuration of photos with captions inside one file, and that file."""
    pictures = jpegs(40, (48, 40))
    texts = {name: f"picture {row} of many\nno {row}" for row, name in enumerate(pictures)}
    path = write_config(folder, "MATE")
    if kind == "tar":
        beside = {name.replace(".jpg", ".txt"): text for name, text in texts.items()}
        files = [*pictures.items(), *beside.items()]
        photos = write_tar(folder / "photos.tar", files)
    else:
        columns = {
            "image": as_structs(pictures),
            "caption": [text.splitlines() for text in texts.values()],
        }
        photos = write_parquet(folder / "photos.parquet", columns, row_group_size=7)
    if kind == "saved":
        datasets = pytest.importorskip("datasets")
        whole = datasets.Dataset.from_parquet(str(photos), cache_dir=str(folder / "hf"))
        photos = folder / "saved"
        whole.save_to_disk(photos)
    config = yaml.safe_load(path.read_text())
    config["data"]["init_args"]["dataset"] = {
        "class_path": "itmkit.data.CaptionedFolder",
        "init_args": {"photos": photos.name, "image_size": 32},  # crops are drawn
    }
    path.write_text(yaml.safe_dump(config))


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "kind", ["tar", "parquet", pytest.param("saved", marks=pytest.mark.extras)]
)
def test_killed_in_a_fit_from_packed_photos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, workers: int
) -> None:
    """Also while the file is indexed or unpacked: each folder has its own, which is new."""
    words = (*EVERY_TWO, "--data.num_workers", str(workers))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folders = [tmp_path / name for name in ("whole", "cut")]
    for folder in folders:
        packed_photos(folder, kind)
    ended = fit(folders[0], *words)
    assert ended.code == 0, ended.err
    killed = fit(folders[1], *words, kill=Kill("step", 8))
    assert killed.code == -signal.SIGKILL, killed.err
    moments = kill_at_random_moments(folders[1], 1.0 + 2 * workers, *words, most=3)
    print("killed after", moments)
    check_same(*folders)


@pytest.mark.parametrize(
    ("system", "options", "every", "batch"),
    [("TVRN", INSIDE, 2, 3), ("DAIM", {}, 5, 3), ("MATE", ACCUMULATES, 1, 9)],
)
def test_own_checkpoint_right_before_a_validation(
    tmp_path: Path, whole: Any, system: str, options: dict[str, Any], every: int, batch: int
) -> None:
    """Inside an epoch, at its end, and where gradients are accumulated."""
    cut = tmp_path / "cut"
    own = {
        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
        "init_args": {"filename": "own", "every_n_train_steps": every, "save_top_k": 1},
    }
    options = options | {"callbacks": [own]}
    write_config(cut, system, **options)
    killed = fit(cut, kill=Kill("validate", batch))
    assert killed.code == -signal.SIGKILL, killed.err
    (path,) = cut.glob("runs/tiny/2*/checkpoints/own*.ckpt")
    path.rename(cut / LAST)
    assert fit(cut).code == 0
    check_same(whole(system, options), cut)


def test_killed_again_before_its_first_checkpoint_and_in_a_folder_that_was_moved(
    tmp_path: Path, whole: Any
) -> None:
    """The best checkpoint goes along."""
    cut, moved = tmp_path / "cut", tmp_path / "moved"
    write_config(cut, "MATE")
    for steps in (12, 1):
        assert fit(cut, kill=Kill("step", steps)).code == -signal.SIGKILL
    shutil.move(cut, moved)
    assert fit(moved).code == 0
    assert len(runs(moved)) == 3
    check_same(whole("MATE", {}), moved)


@pytest.mark.parametrize(
    ("system", "options", "moment", "number"),
    [
        ("MATE", ACCUMULATES, Kill("step", 8), signal.SIGTERM),  # between two optimizer steps
        ("DAIM", STEPS, Kill("step", 8), signal.SIGTERM),
        ("TVRN", INSIDE, Kill("validate", 3), signal.SIGTERM),
        ("TVRN", INSIDE, Kill("step", 8), signal.SIGINT),
        ("DAIM", STEPS, Kill("step", 2), signal.SIGINT),  # in the first epoch
        ("TVRN", INSIDE, Kill("validate", 3), signal.SIGINT),
    ],
)
def test_signal_ends_a_run_that_can_be_resumed(
    tmp_path: Path, whole: Any, system: str, options: dict[str, Any], moment: Kill, number: int
) -> None:
    cut = tmp_path / "cut"
    write_config(cut, system, **options)
    ended = fit(cut, kill=moment, with_signal=number)
    assert ended.code == 128 + number
    (line,) = (line for line in ended.err.splitlines() if line.startswith("itmkit: "))
    name = signal.Signals(number).name
    last = runs(cut)[0].relative_to(cut) / "checkpoints/last.ckpt"
    assert line == f"itmkit: ended by {name}; to go on: --ckpt_path {last}"
    steps = load(cut / last)["global_step"]
    assert steps == (4 if system == "MATE" or moment.place == "validate" else moment.count)
    assert fit(cut).code == 0
    check_same(whole(system, options), cut)


def test_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    write_config(cut, "DAIM")
    ended = fit(cut, kill=[Kill("step", 2), Kill("write", 1)], with_signal=signal.SIGINT)
    assert ended.code == -signal.SIGINT
    assert "again: ending at once" in ended.err
    assert "Traceback" not in ended.err
    (folder,) = cut.glob("runs/tiny/2*/checkpoints")
    assert [path.name for path in folder.iterdir()] == [".last.ckpt.part"]


def test_interrupt_of_a_terminal_does_not_end_the_workers_before_it_is_saved(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    write_config(folder, "TVRN", max_epochs=1000)
    command = Command(folder, "fit", "--config=tiny.yaml", "--data.num_workers=2")
    end = time.monotonic() + 60
    while time.monotonic() < end and not (folder / "runs/tiny/latest/metrics.csv").exists():
        time.sleep(0.05)
    for pid in [*children(command.pid), command.pid]:  # the workers first
        os.kill(pid, signal.SIGINT)
    ended = command.end(60)
    assert ended.code == 128 + signal.SIGINT, ended.err
    assert "itmkit: ended by SIGINT; to go on: --ckpt_path " in ended.err
    assert "Traceback" not in ended.err
    assert (folder / LAST).is_file()


# Also in the last batch before the scores, of two, which Lightning does not look behind.
@pytest.mark.parametrize("moment", [Kill("score", 2), Kill("validate", 4)])
def test_gallery_is_not_scored_to_its_end(tmp_path: Path, whole: Any, moment: Kill) -> None:
    cut = tmp_path / "cut"
    write_config(cut, "TVRN", **INSIDE)
    assert fit(cut, kill=moment, with_signal=signal.SIGTERM).code == 128 + signal.SIGTERM
    assert sum("val/rsum" in row for row in rows(*runs(cut))) == 1
    assert fit(cut).code == 0
    check_same(whole("TVRN", INSIDE), cut)


@pytest.mark.parametrize("count", [1, 7])  # two batches after each of three epochs
def test_terminated_while_the_end_is_measured(tmp_path: Path, whole: Any, count: int) -> None:
    cut = tmp_path / "cut"
    write_config(cut, "MATE")
    ended = fit(cut, kill=Kill("validate", count), with_signal=signal.SIGTERM)
    assert ended.code == 128 + signal.SIGTERM
    assert fit(cut).code == 0
    check_same(whole("MATE", {}), cut)


def test_terminated_while_the_untrained_model_is_measured(tmp_path: Path) -> None:
    write_config(tmp_path / "run", "DAIM")
    ended = fit(
        tmp_path / "run",
        "--untrained=true",
        kill=Kill("validate", 1),
        with_signal=signal.SIGTERM,
    )
    assert ended.code == 128 + signal.SIGTERM
    assert ended.err.splitlines()[-1] == "itmkit: ended by SIGTERM"
    assert not (tmp_path / "run/runs").exists()


@pytest.mark.parametrize("steps", [7, 10])  # inside an epoch, and at the end of one
def test_a_run_that_max_steps_ended_goes_on_to_more(tmp_path: Path, whole: Any, steps: int) -> None:
    cut = tmp_path / "cut"
    write_config(cut, "DAIM", **STEPS)
    length = "--model.lr_scheduler.init_args.total_steps=14"  # or the shorter run's is its own
    assert fit(cut, length, f"--trainer.max_steps={steps}").code == 0
    assert fit(cut, length).code == 0
    unbroken = whole("DAIM", STEPS)
    last, resumed = (everything(runs(folder)[-1]) for folder in (unbroken, cut))
    assert differences(last["state_dict"], resumed["state_dict"]) == []
    assert differences(last["optimizer_states"], resumed["optimizer_states"]) == []
    # the end of the shorter run was validated, too
    more = [row for row in rows(*runs(cut)) if row not in rows(*runs(unbroken))]
    assert [int(row["step"]) for row in more] == ([6] if steps == 7 else [])
    assert all(row in rows(*runs(cut)) for row in rows(*runs(unbroken)))


def test_slurm_requeues_and_the_job_goes_on(tmp_path: Path, whole: Any) -> None:
    """Its signals reach Lightning's handlers; the job that starts again finds its checkpoint."""
    cut, log = tmp_path / "cut", tmp_path / "log"
    write_config(cut, "TVRN", **INSIDE)
    program = tmp_path / "bin/scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\nkill -TERM $PPID\n')  # as SLURM does
    program.chmod(0o755)
    job = {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NAME": "train",
        "SLURM_NTASKS": "1",
        "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "SLURM_JOB_NODELIST": "node1",
        "PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}",
    }
    ended = fit(cut, kill=Kill("step", 8), with_signal=signal.SIGUSR1, environment=job)
    assert log.read_text() == "requeue 77\n"
    assert ended.code == 128 + signal.SIGTERM
    # the same command again
    requeued = job | {"SLURM_RESTART_COUNT": "1"}
    again = run_command(cut, "fit", "--config", "tiny.yaml", environment=requeued)
    assert again.code == 0
    assert again.out.startswith(f"requeued: going on from {runs(cut)[0].relative_to(cut)}/")
    check_same(whole("TVRN", INSIDE), cut)


@pytest.mark.parametrize(
    "worker", [pytest.param(0, marks=pytest.mark.long, id="training"), pytest.param(-1, id="last")]
)
def test_death_of_a_worker_ends_the_run_in_one_line(tmp_path: Path, worker: int) -> None:
    folder = tmp_path / "run"
    write_config(folder, "TVRN", max_epochs=1000)
    command = Command(folder, "fit", "--config=tiny.yaml", "--data.num_workers=2")
    end = time.monotonic() + 60
    table = "runs/tiny/latest/metrics.csv"
    while time.monotonic() < end and not (folder / table).exists():
        time.sleep(0.05)
    moment = random.uniform(0, 0.8)  # from the start of validation's workers on
    time.sleep(moment)
    start = time.monotonic()
    os.kill(children(command.pid)[worker], signal.SIGKILL)
    ended = command.end(30)
    seconds = time.monotonic() - start
    print(f"killed after {moment:.2f} s, ended after {seconds:.1f} s")
    assert seconds < 20
    assert ended.code == 2
    (line,) = (line for line in ended.err.splitlines() if line.startswith("itmkit: error: "))
    assert "a process that reads the data was killed" in line
    assert "Traceback" not in ended.err


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(word) for word in (task / "children").read_text().split()]
    return sorted(found)


class Dropping(LightningModule):
    """Remembers which of its weights were dropped in each step."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 16)
        self.dropout = torch.nn.Dropout(dropout)
        self.dropped: list[list[bool]] = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        kept = self.dropout(torch.ones(16))
        self.dropped.append((kept == 0).tolist())
        return (self.linear(batch[0]) * kept).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(module: Dropping, *stop: Stop, ckpt_path: Path | None = None, **options: Any) -> None:
    seed_everything(1)
    torch.manual_seed(1)
    trainer = trainer_of(ExactResume(), *stop, **options)
    trainer.fit(module, Batches(), ckpt_path=ckpt_path)


def test_another_number_of_processes_draws_what_was_not_drawn_before(tmp_path: Path) -> None:
    first, same, other = Dropping(), Dropping(), Dropping()
    path = tmp_path / "two.ckpt"
    train(first, Stop(path, 2))
    train(same, ckpt_path=path)
    content = load(path)
    content["resume"]["processes"] *= 2
    torch.save(content, path)
    train(other, ckpt_path=path)
    assert len(same.dropped) == len(other.dropped) == 4
    assert all(mask not in first.dropped + same.dropped for mask in other.dropped)


def test_gradients_of_another_number_of_processes_are_averaged(tmp_path: Path) -> None:
    whole, first, rest = Dropping(0.0), Dropping(0.0), Dropping(0.0)
    first.load_state_dict(whole.state_dict())
    path = tmp_path / "three.ckpt"
    train(whole, accumulate_grad_batches=2)
    train(first, Stop(path, 3), accumulate_grad_batches=2)
    content = load(path)
    (process,) = content["resume"]["processes"]
    assert process["gradients"].keys() == {"linear.weight", "linear.bias"}
    doubled = {name: 2 * gradient for name, gradient in process["gradients"].items()}
    content["resume"]["processes"] = [process | {"gradients": doubled}, process | {"gradients": {}}]
    torch.save(content, path)
    train(rest, ckpt_path=path, accumulate_grad_batches=2)
    assert_equal(snapshot(rest), snapshot(whole))


def test_buffers_of_a_process_that_the_model_now_lacks_are_left_out(tmp_path: Path) -> None:
    """As of a hubness correction without which the run goes on."""
    path, rest = tmp_path / "two.ckpt", Dropping()
    train(Dropping(), Stop(path, 2))
    content = load(path)
    (process,) = content["resume"]["processes"]
    process["buffers"] = {"kept": torch.ones(2), "gone": torch.ones(2)}
    torch.save(content, path)
    rest.register_buffer("kept", torch.zeros(2), persistent=False)
    train(rest, ckpt_path=path)
    assert rest.get_buffer("kept").tolist() == [1, 1]


def test_a_plain_module_and_loader_resume_exactly_at_the_end_of_an_epoch(tmp_path: Path) -> None:
    def fit(folder: str, *epochs: int) -> dict[str, torch.Tensor]:
        module = Dropping()
        for max_epochs in epochs:
            seed_everything(1)
            module, last = Dropping(), LastCheckpoint(dirpath=tmp_path / folder)
            trainer = trainer_of(
                ExactResume(), last, max_epochs=max_epochs, enable_checkpointing=True
            )
            loader = DataLoader(TensorDataset(BATCHES.flatten(0, 1)), 3, shuffle=True)
            trainer.fit(module, loader, ckpt_path=last.path if last.path.is_file() else None)
        return snapshot(module)

    assert_equal(fit("cut", 1, 2, 3), fit("whole", 3))
