from __future__ import annotations

import csv
import json
import sys
import warnings
from pathlib import Path

import pytest
import tiny_matcher
import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from processes import run_all
from tiny_cli import CONFIG, refused, run, table_rows

from itmkit.cli import main
from itmkit.retrieval import Gallery

pytestmark = pytest.mark.usefixtures("tiny_folder")


def test_smoke_fit(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("fit")
    assert folder.parent == Path("runs/tinymatcher-tiny")
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.json", "metrics.csv"} <= made
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= made
    assert any(name.startswith("events.out.tfevents") for name in made)
    assert (folder.parent / "latest").resolve() == folder.resolve()
    assert sorted(Path.cwd().iterdir()) == [Path.cwd() / "runs", Path.cwd() / "tiny.yaml"]

    metrics = json.loads((folder / "metrics.json").read_text())
    assert {"val/rsum", "val/i2t_r1", "val/t2i_r10", "val/t2i_meanr"} <= metrics.keys()
    described = metrics.pop("about")
    assert all(isinstance(value, float) for value in metrics.values())
    assert described["val"]["split"] == "val"
    assert described["val"]["images"] == described["val"]["captions"] == 4
    assert described["val"]["checkpoint"] == "checkpoints/best.ckpt"
    assert described["val"]["step"] in (2, 4)
    assert described["val"]["batches"] is None
    told = capsys.readouterr().out
    assert table_rows(told) == ["untrained", "trained"]
    step = described["val"]["step"]
    assert f"val: 4 images × 4 captions, checkpoints/best.ckpt at step {step}\n" in told


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_a_part_of_a_split_is_told(
    command: str, split: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(command, f"--trainer.limit_{split}_batches=1", "--data.eval_batch_size=2")
    content = json.loads((folder / "metrics.json").read_text())["about"][split]
    assert content.pop("intervals").keys() >= {"i2t_r1", "rsum"}
    assert content == {
        "split": split,
        "images": 2,
        "captions": 2,
        "checkpoint": None,
        "step": 0,
        "batches": [1, 2],
        "protocol": None,
        "queries": None,
        "probes": None,
    }
    told = capsys.readouterr().out
    assert "2 images × 2 captions, no checkpoint, step 0; only 1 of 2 batches\n" in told
    assert table_rows(told) == ["untrained"]


def test_table_shows_the_best_checkpoint_not_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("fit", "--trainer.max_epochs", "6", "--model.rate", "0.5")
    with open(folder / "metrics.csv") as file:
        column = [row["val/rsum"] for row in csv.DictReader(file) if row["val/rsum"]]
    recalls = [float(value) for value in column]
    assert len(recalls) == 7  # untrained, then six epochs; the closing measurement is not logged
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["val/rsum"] == pytest.approx(max(recalls[1:]), abs=1e-3)
    assert max(recalls) > recalls[0]


def test_nothing_of_the_parser_is_deprecated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "all")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run("fit", "--untrained=false", "--trainer.max_steps=1")
    found = {str(one.message) for one in seen if "Jsonargparse" in one.category.__name__}
    assert not found


def test_untrained_row_does_not_change_training() -> None:
    weights = [
        torch.load(run("fit", "--untrained", flag) / "checkpoints/last.ckpt", weights_only=True)
        for flag in ("true", "false")
    ]
    for name, tensor in weights[0]["state_dict"].items():
        assert torch.equal(tensor, weights[1]["state_dict"][name])


def test_runs_of_the_same_second_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form, *when: "20200101-000000")
    first, second = run("fit"), run("fit")
    assert first.name == "20200101-000000"
    assert second.name == "20200101-000000-2"


@pytest.mark.parametrize("steps", [1, 3])
def test_the_last_step_inside_an_epoch_is_validated_too(steps: int) -> None:
    folder = run("fit", "--trainer.max_steps", str(steps), "--trainer.max_epochs=9")
    with open(folder / "metrics.csv") as file:
        validated = [int(row["step"]) for row in csv.DictReader(file) if row["val/rsum"]]
    assert validated[-1] == steps - 1
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == steps
    state = next(value for key, value in last["callbacks"].items() if "BestCheckpoint" in key)
    assert state["best_model_path"].endswith("checkpoints/best.ckpt")
    assert (folder / "checkpoints/best.ckpt").is_file()
    assert "val/rsum" in json.loads((folder / "metrics.json").read_text())


def test_saved_config_reproduces_the_run() -> None:
    first = run("fit", "--model.rate", "0.3", "--name", "mine")
    saved = yaml.safe_load((first / "config.yaml").read_text())
    assert saved["model"]["init_args"] == {"dim": 4, "rate": 0.3, "words": 16}
    assert str(first) not in (first / "config.yaml").read_text()
    Path("tiny.yaml").write_text((first / "config.yaml").read_text())
    again = run("fit")
    assert again.parent == first.parent == Path("runs/mine")
    assert (again / "metrics.json").read_text() == (first / "metrics.json").read_text()


def test_the_command_line_wins_wherever_it_stands() -> None:
    main(["fit", "--trainer.max_epochs=1", "--config=tiny.yaml", "--untrained=false"])
    (saved,) = Path("runs").glob("*/2*/config.yaml")
    assert yaml.safe_load(saved.read_text())["trainer"]["max_epochs"] == 1


def test_resume_in_a_new_folder_with_the_command_lines_numbers() -> None:
    whole = run("fit", "--name", "whole", "--trainer.max_epochs", "4")
    half = run("fit", "--name", "half")
    checkpoint = str(half / "checkpoints/last.ckpt")
    kept = {path: path.stat().st_mtime_ns for path in half.rglob("*")}
    rest = run("fit", "--name", "rest", "--ckpt_path", checkpoint, "--trainer.max_epochs", "4")
    assert {path: path.stat().st_mtime_ns for path in half.rglob("*")} == kept
    ends = [
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (whole, rest)
    ]
    assert [end["epoch"] for end in ends] == [3, 3]
    for name, tensor in ends[0]["state_dict"].items():
        assert torch.equal(tensor, ends[1]["state_dict"][name])
    assert yaml.safe_load((rest / "config.yaml").read_text())["ckpt_path"] == checkpoint


def test_last_checkpoint_is_that_of_the_last_epoch_and_best_of_the_best() -> None:
    folder = run("fit", "--model.rate", "2.0", "--trainer.max_epochs", "9")
    best, last = (
        torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True)
        for name in ("best", "last")
    )
    assert best["epoch"] < last["epoch"] == 8
    assert sorted(path.name for path in folder.glob("checkpoints/*")) == ["best.ckpt", "last.ckpt"]


def test_best_checkpoint_goes_along_when_a_run_is_resumed() -> None:
    """The best of an unbroken run and of one resumed after its best epoch are the same."""
    options = ["--model.rate", "2.0"]  # so high that the first epochs are the best ones
    whole = run("fit", "--name", "whole", "--trainer.max_epochs", "9", *options)
    half = run("fit", "--name", "half", "--trainer.max_epochs", "6", *options)
    last = str(half / "checkpoints/last.ckpt")
    rest = run("fit", "--name", "rest", "--ckpt_path", last, "--trainer.max_epochs", "9", *options)
    bests = [
        torch.load(folder / "checkpoints/best.ckpt", weights_only=True)
        for folder in (whole, half, rest)
    ]
    assert [best["epoch"] for best in bests] == [bests[0]["epoch"]] * 3
    assert bests[0]["epoch"] < 6
    for name, tensor in bests[0]["state_dict"].items():
        assert torch.equal(tensor, bests[2]["state_dict"][name])
    assert (whole / "metrics.json").read_text() == (rest / "metrics.json").read_text()


def test_resume_without_the_old_best_judges_afresh() -> None:
    half = run("fit", "--name", "half")
    (half / "checkpoints/best.ckpt").unlink()
    last = str(half / "checkpoints/last.ckpt")
    rest = run("fit", "--name", "rest", "--ckpt_path", last, "--trainer.max_epochs", "3")
    best = torch.load(rest / "checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] >= 1


def test_what_a_checkpoint_remembers_does_not_override_the_command_line(tmp_path: Path) -> None:
    checkpoint = run("fit") / "checkpoints/last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"] = {"_class_path": "tiny_matcher.TinyMatcher", "rate": 9.0}
    torch.save(content, checkpoint)
    folder = run("fit", "--name", "b", "--ckpt_path", str(checkpoint), "--model.rate", "0.2")
    assert yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["rate"] == 0.2


@pytest.mark.parametrize(("command", "stage"), [("validate", "val"), ("test", "test")])
def test_measure_a_checkpoint(command: str, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    fitted = run("fit", "--trainer.max_epochs", "5", "--model.rate", "0.5")
    capsys.readouterr()
    Path("tiny.yaml").write_text((fitted / "config.yaml").read_text())
    best = str(fitted / "checkpoints/best.ckpt")
    folder = run(command, "--ckpt_path", best, "--untrained", "true")
    assert folder.name.endswith(f"-{command}")
    assert table_rows(capsys.readouterr().out) == ["untrained", "trained"]
    metrics = json.loads((folder / "metrics.json").read_text())
    fit_metrics = json.loads((fitted / "metrics.json").read_text())
    # all splits of the tiny data are alike
    assert metrics[f"{stage}/rsum"] == fit_metrics["val/rsum"]
    assert (fitted.parent / "latest").resolve() == fitted.resolve()


def test_measuring_no_checkpoint_is_warned_of_where_it_is_not_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, told in ([], 1), (["--untrained", "true"], 0):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run("test", *words)
        found = [str(one.message) for one in caught]
        assert sum(one.startswith("ckpt_path is null; expected") for one in found) == told
        assert table_rows(capsys.readouterr().out) == ["untrained"]


def test_error_predict_without_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "predict", "--config", "tiny.yaml")
    assert line.startswith("ckpt_path is null; expected a checkpoint, or --untrained true")


def test_predict_saves_a_gallery(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("predict", "--untrained", "true")
    path = folder / "gallery.safetensors"
    assert f"gallery: {path}, of an untrained model" in capsys.readouterr().out
    gallery = Gallery.load(folder)
    assert gallery.images.vector.shape == gallery.texts.vector.shape == (4, 4)
    assert gallery.text_image_ids.tolist() == [0, 1, 2, 3]
    assert gallery.names == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert gallery.captions is not None
    assert gallery.captions[2] == "a blue field"


def test_fast_dev_run_leaves_nothing() -> None:
    main(["fit", "--config", "tiny.yaml", "--trainer.fast_dev_run", "true"])
    assert not Path("runs").exists()


def test_a_report_that_cannot_be_written_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--trainer.enable_checkpointing", "false", "--untrained=false", "--report", "true")
    assert "no report: it is of a run with checkpoints" in capsys.readouterr().out


def test_other_loggers_write_into_the_run_folder() -> None:
    folder = run("fit", "--trainer.logger", "tiny_matcher.Elsewhere", "--untrained=false")
    assert (folder / "elsewhere/metrics.csv").is_file()
    assert (folder / "metrics.csv").is_file()
    assert not list(folder.glob("events*"))
    assert sorted(Path.cwd().iterdir()) == [Path.cwd() / "runs", Path.cwd() / "tiny.yaml"]
    assert str(folder) not in (folder / "config.yaml").read_text()


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_loggers_without_a_save_dir(logger: str) -> None:
    folder = run("fit", "--trainer.logger", logger, "--untrained=false")
    written = {path.name.partition(".")[0] for path in folder.glob("lightning_logs/version_0/*")}
    assert written == {"hparams", "metrics" if logger == "CSVLogger" else "events"}
    assert (folder / "metrics.csv").is_file()
    assert sorted(Path.cwd().iterdir()) == [Path.cwd() / "runs", Path.cwd() / "tiny.yaml"]


def test_a_list_of_loggers_in_a_file() -> None:
    Path("tiny.yaml").write_text(
        f"{CONFIG}  logger:\n  - CSVLogger\n  - class_path: TensorBoardLogger\n"
        "    init_args: {name: curves}\n"
    )
    folder = run("fit", "--untrained=false")
    assert (folder / "lightning_logs/version_0/metrics.csv").is_file()
    assert list(folder.glob("curves/version_0/events*"))


def test_wandb_beside_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = run("fit", "--trainer.logger", "WandbLogger", "--untrained=false")
    assert list(folder.glob("wandb/offline-run-*"))
    with open(folder / "metrics.csv") as file:
        assert any(row["val/rsum"] for row in csv.DictReader(file))


def test_no_logger_no_table() -> None:
    folder = run("fit", "--trainer.logger", "false", "--untrained=false")
    assert not (folder / "metrics.csv").exists()


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "/tmp/outside", "", " ", "."])
def test_error_name_leads_out_of_the_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "fit", "--config", "tiny.yaml", f"--name={name}")
    assert line == f"name is {name!r}; expected a folder inside that of all runs"
    assert [path.name for path in Path.cwd().iterdir()] == ["tiny.yaml"]
    assert not Path("../outside").exists()


def test_error_barebones(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "fit", "--config", "tiny.yaml", "--trainer.barebones", "true")
    assert line == "trainer.barebones is true; expected false: a run logs and measures"


def test_a_system_in_a_file_of_the_working_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "path", [path for path in sys.path if path not in ("", str(Path.cwd()))]
    )
    Path("own_system_of_this_test.py").write_text(
        "from tiny_matcher import TinyMatcher\n\n\nclass Mine(TinyMatcher):\n    pass\n"
    )
    Path("tiny.yaml").write_text(
        CONFIG.replace("tiny_matcher.Tiny", "own_system_of_this_test.Mine", 1).replace(
            "MineMatcher", "Mine"
        )
    )
    folder = run("fit", "--untrained=false")
    assert folder.parent.name == "mine-tiny"


def test_without_checkpoints_the_last_weights_are_measured() -> None:
    folder = run("fit", "--trainer.enable_checkpointing", "false")
    assert not (folder / "checkpoints").exists()
    assert (folder / "metrics.json").is_file()


def test_ddp_writes_one_run_folder() -> None:
    options = "--trainer.devices 2 --trainer.strategy ddp --trainer.max_epochs 1"
    fit = [sys.executable, "-m", "itmkit", "fit", "--config", "tiny.yaml", *options.split()]
    run_all([(fit, {})])
    (folder,) = Path("runs/tinymatcher-tiny").glob("2*")
    assert {path.name for path in Path("runs/tinymatcher-tiny").iterdir()} == {
        folder.name,
        "latest",
    }
    assert sorted(path.name for path in folder.glob("checkpoints/*")) == ["best.ckpt", "last.ckpt"]
    assert "val/rsum" in json.loads((folder / "metrics.json").read_text())


def test_error_unknown_config(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "fit", "--config", "mate/shape")
    assert line.startswith("config 'mate/shape' is neither a file nor a shipped configuration (")
    assert line.endswith("Did you mean 'mate/shapes'?")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("max_epochs", "max_epoch", "does not accept option 'trainer.max_epoch'. Did you mean"),
        ("{dim: 4}", "{dmi: 4}", "Option 'dmi' is not accepted. Did you mean 'dim'?"),
        ("{dim: 4}", "{dim: four}", "dim: Expected a int. Got value: four"),
        ("batch_size", "bach_size", "Option 'bach_size' is not accepted. Did you mean 'batch_size"),
        ("TinyMatcher", "TinyMacher", "module 'tiny_matcher' has no attribute 'TinyMacher'"),
        ("trainer:", "trainer: [", "config 'tiny.yaml', line 12: expected"),
    ],
)
def test_error_in_the_config(
    old: str, new: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.yaml").write_text(CONFIG.replace(old, new))
    line = refused(capsys, "fit", "--config", "tiny.yaml")
    assert told in line
    assert len(line) < 200


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("missing", "No such file or directory: 'no/such/captions.txt'"),
        ("empty", "split 'train' has no images"),
        ("image", "0.jpg is missing"),
    ],
)
def test_error_in_the_data(broken: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = f"--data.dataset.init_args.broken={broken}"
    assert told in refused(capsys, "fit", "--config", "tiny.yaml", option)


@pytest.mark.parametrize("devices", [1, 2])
def test_error_of_a_batch_larger_than_the_data_comes_before_any_work(
    devices: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "validate", lambda *args, **options: pytest.fail("measured"))
    monkeypatch.setattr(Trainer, "world_size", devices)
    size = 4 // devices + 1
    line = refused(capsys, "fit", "--config", "tiny.yaml", f"--data.batch_size={size}")
    expected = f"batch_size is {size} on {devices} process(es); expected at most {4 // devices}"
    assert line.startswith(expected)


def test_overfit_batches() -> None:
    folder = run("fit", "--trainer.overfit_batches=1", "--trainer.max_epochs=3")
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == 3


def test_error_in_a_worker_process(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.dataset.init_args.broken=image", "--data.num_workers=1"]
    line = refused(capsys, "test", "--config", "tiny.yaml", *options)
    assert line == "0.jpg is missing"


def test_error_after_the_first_step_keeps_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError, match="crash"):
        run("fit", "--trainer.callbacks", "tiny_matcher.StopHard")
    (folder,) = Path("runs").glob("*/2*")
    assert (folder / "checkpoints/last.ckpt").is_file()


def test_bug_keeps_its_traceback_and_leaves_no_run() -> None:
    with pytest.raises(KeyError, match="bug"):
        run("fit", "--data.dataset.init_args.broken", "bug")
    assert not Path("runs").exists()


def test_debug_shows_the_traceback_of_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ITMKIT_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("fit", "--data.dataset.init_args.broken", "missing")


def test_error_no_config(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "fit")
    assert line.endswith("start from a configuration, such as --config mate/shapes")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["test", "--checkpoint.save_top_k=2"],
            "checkpoint.save_top_k is an option of fit, not of",
        ),
        (["predict", "--last.every_n_train_steps=2"], "last.every_n_train_steps is an option of f"),
        (["validate", "--exact_resume=false"], "exact_resume is an option of fit, not of validate"),
        (["test", "--init_strict=false"], "init_strict is an option of fit, not of test"),
        (["fit", "--init_strict=false"], "init_strict is given, and init_from is null; expected"),
        (["predict", "--untrained=true", "--ckpt_path=a.ckpt"], "untrained is true, and ckpt_path"),
    ],
)
def test_error_of_an_option_without_effect(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint_of_the_tiny_system("a.ckpt")
    assert refused(capsys, *words, "--config", "tiny.yaml").startswith(told)


def test_error_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "train").startswith("unknown command 'train'; expected one of fit,")


def checkpoint_of_the_tiny_system(path: str) -> dict[str, object]:
    seed_everything(0)
    content = {"state_dict": tiny_matcher.TinyMatcher().state_dict(), "system": "TinyMatcher"}
    torch.save(content, path)
    return content


def test_error_checkpoint_of_another_system(capsys: pytest.CaptureFixture[str]) -> None:
    content = checkpoint_of_the_tiny_system("tiny.ckpt")
    torch.save(content | {"system": "OtherMatcher"}, "tiny.ckpt")
    line = refused(capsys, "test", "--config", "tiny.yaml", "--ckpt_path", "tiny.ckpt")
    assert line.startswith("ckpt_path 'tiny.ckpt' is of the system OtherMatcher; ")
    assert line.endswith("expected TinyMatcher")


def test_checkpoint_of_a_parent_is_measured() -> None:
    checkpoint = run("fit", "--trainer.max_epochs=1") / "checkpoints/last.ckpt"
    Path("tiny.yaml").write_text(CONFIG.replace("TinyMatcher", "OtherMatcher"))
    assert (run("test", "--name=other", f"--ckpt_path={checkpoint}") / "metrics.json").is_file()


@pytest.mark.parametrize("finder", ["BatchSizeFinder", "LearningRateFinder"])
def test_error_of_a_callback_that_searches(finder: str, capsys: pytest.CaptureFixture[str]) -> None:
    option = f"--trainer.callbacks=lightning.pytorch.callbacks.{finder}"
    line = refused(capsys, "fit", "--config=tiny.yaml", option)
    assert line.startswith(f"trainer.callbacks has a {finder}, ")
    assert not Path("runs").exists()


def test_error_checkpoint_of_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    content = checkpoint_of_the_tiny_system("tiny.ckpt")
    content |= {"pytorch-lightning_version": "2.6.6", "loops": {}, "itmkit_version": "0.0.1"}
    torch.save(content, "tiny.ckpt")
    line = refused(
        capsys, "test", "--config=tiny.yaml", "--model.dim=5", "--ckpt_path", "tiny.ckpt"
    )
    assert line.startswith(
        "checkpoint 'tiny.ckpt' does not fit TinyMatcher: image.bias ((4,), expected (5,)), "
    )
    assert "; it was written by itmkit 0.0.1 and this is itmkit " in line


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "truncated", "weights", "pickle"])
def test_error_no_checkpoint(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path("some.ckpt")
    if kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        checkpoint_of_the_tiny_system("some.ckpt")
        path.write_bytes(path.read_bytes()[:-1000])
    elif kind == "weights":
        torch.save({"weight": torch.zeros(2)}, path)
    elif kind == "pickle":
        torch.save({"state_dict": {}, "system": Path}, path)
    line = refused(capsys, "fit", "--config", "tiny.yaml", "--ckpt_path", "some.ckpt")
    assert line.startswith("ckpt_path 'some.ckpt' is not a ")


def test_home_folder_in_paths(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_folder / "home"))
    (tiny_folder / "home").mkdir()
    options = ["--config", "tiny.yaml", "--trainer.default_root_dir=~/mine", "--name=tiny"]
    main(["fit", *options])
    checkpoint = "mine/tiny/latest/checkpoints/last.ckpt"
    assert (tiny_folder / "home" / checkpoint).is_file()
    main(["test", *options, f"--ckpt_path=~/{checkpoint}"])
    assert sorted(path.name for path in tiny_folder.iterdir()) == ["home", "tiny.yaml"]
