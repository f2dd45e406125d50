"""A finished run, brought back as the model and the data it had."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from itmkit.checks import InputError
from itmkit.cli import main
from itmkit.retrieval import encode, evaluate
from itmkit.systems import MATE, find_run, load_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A MATE that took one step on sixteen scenes."""
    folder = tmp_path_factory.mktemp("runs")
    options = {
        "--trainer.default_root_dir": folder,
        "--trainer.max_steps": 1,
        "--trainer.enable_progress_bar": "false",
        "--data.dataset.init_args.length": 16,
        "--data.batch_size": 8,
        "--name": "tiny",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["itmkit"])
        main(["fit", "--config", "mate/shapes", *(f"{k}={v}" for k, v in options.items())])
    return folder / "tiny" / "latest"


def test_load_run_gives_the_recall_that_the_run_reported(run_folder):
    model, data = load_run(run_folder)
    assert isinstance(model, MATE)
    assert not model.training
    gallery = encode(model, data.val_dataloader())
    relevance = data.split("val").relevance(gallery.image_ids, gallery.text_ids)
    recall = evaluate(model, gallery, relevance=relevance)
    reported = json.loads((run_folder / "metrics.json").read_text())
    assert recall["rsum"] == pytest.approx(reported["val/rsum"], abs=1e-3)


def test_example_captions_of_a_photo(run_folder, capsys):
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    try:
        import captions_of_a_photo
    finally:
        sys.path.pop(0)
    captions_of_a_photo.main(str(run_folder))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("rSum ")
    assert len(lines) == 6


def test_error_of_a_missing_folder_and_checkpoint(run_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_run(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"other\.ckpt"):
        load_run(run_folder, checkpoint="other.ckpt")


def test_error_of_a_checkpoint_of_another_system(run_folder, tmp_path):
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    path = copy / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)
    torch.save(state | {"system": "DAIM"}, path)
    with pytest.raises(ValueError, match="is of the system DAIM; expected MATE"):
        load_run(copy)


def test_error_of_a_checkpoint_of_another_version(run_folder, tmp_path):
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    path = copy / "checkpoints" / "best.ckpt"
    state = torch.load(path, weights_only=True)
    state["state_dict"].popitem()
    torch.save(state | {"itmkit_version": "0.0.1"}, path)
    told = r"best\.ckpt' does not fit MATE: .* \(not in the file\).*written by itmkit 0\.0\.1 and"
    with pytest.raises(InputError, match=told):
        load_run(copy)


@pytest.mark.parametrize("content", [b"", b"PK\3\4 cut off"])
@pytest.mark.parametrize("name", ["best.ckpt", "last.ckpt"])
def test_error_of_a_broken_checkpoint(tmp_path, run_folder, name, content):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    shutil.copy(run_folder / "config.yaml", tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(
        InputError, match=rf"^checkpoint '.*{name}' is not a readable file of torch"
    ):
        load_run(tmp_path)


def test_error_of_a_constructor_is_raised_as_it_is(run_folder, tmp_path):
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("test_byobnet", "resnet500"))
    with pytest.raises(InputError, match=r"^[^\n]*resnet500[^\n]*$"):
        load_run(copy)


def test_a_run_by_its_folder_or_its_name(run_folder, monkeypatch):
    monkeypatch.chdir(run_folder.parents[2])
    monkeypatch.setattr("itmkit.systems.load.RUNS", Path(run_folder.parents[1].name))
    for given in (run_folder, run_folder.parent, "tiny", f"tiny/{run_folder.resolve().name}"):
        assert find_run(given) == run_folder.resolve()
    with pytest.raises(FileNotFoundError, match=r"run is 'none': neither the folder of a run nor"):
        find_run("none")
