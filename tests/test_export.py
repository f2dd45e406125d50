"""Systems as ONNX files."""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from systems import ALL, SYSTEMS, dataset_of, make_batch

from itmkit.checks import InputError
from itmkit.cli import main
from itmkit.data import ImageTextData
from itmkit.data.batch import Texts
from itmkit.export import export_onnx
from itmkit.export.parity import check_best

pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs itmkit[export]"),
]


def _export(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    case = ALL[name]
    batches = [make_batch(case, length=8), make_batch(case, length=6, batch_size=5)]
    export_onnx(case.make(), [(one.images, one.texts) for one in batches], folder)


@pytest.mark.parametrize(
    "name",
    [
        "dual_encoder",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in (
                *("mate", "mate_mean_path", "daim", "daim_branch", "tvrn_sgr", "tvrn_branch"),
                "dual_corrected",
            )
        ),
    ],
)
def test_the_files_compute_what_the_system_does(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.autocast("cpu", torch.bfloat16):  # changes nothing
        _export(name, tmp_path / "onnx")
    assert "Skipping" not in caplog.text
    files = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert {"image_encoder.onnx", "text_encoder.onnx", "score.onnx", "certificate.json"} <= files
    assert ("rerank.onnx" in files) == (name in ("mate", "daim_branch", "tvrn_branch"))
    certificate = json.loads((tmp_path / "onnx/certificate.json").read_text())
    found = [one["largest_difference"] for one in certificate["checks"]]
    assert 0 < max(found) <= certificate["largest_difference"] <= certificate["tolerance"]
    for file, facts in certificate["files"].items():
        content = (tmp_path / "onnx" / file).read_bytes()
        assert facts["sha256"] == hashlib.sha256(content).hexdigest()


def test_nothing_is_left_where_they_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itmkit.export.parity.TOLERANCE", -1.0)
    with pytest.raises(InputError, match="differs from the model"):
        _export("dual_encoder", tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_other_best_are_found_and_ties_are_not() -> None:
    right = torch.tensor([[0.5, 0.50001, 0.1] + [0.0] * 9])
    tied = right.clone()
    tied[0, 0] = 0.50002
    check_best(tied, right, "image")
    with pytest.raises(InputError, match="other results best"):
        check_best(right.flip(1), right, "image")


def test_model_and_examples_of_another_kind_are_refused(tmp_path: Path) -> None:
    case = SYSTEMS["dual_encoder"]
    batch = make_batch(case, length=8)
    model, pair = case.make(), (batch.images, batch.texts)
    few = (batch.images, Texts(batch.texts.ids[:2], batch.texts.mask[:2]))
    count = len(batch.images)
    for given, examples, message in (
        (torch.nn.Linear(1, 1), [pair], "model is a Linear; expected a Matcher"),
        (case.make().half(), [pair], "in torch.float16 on cpu; expected a model in float32"),
        (model, [pair, batch], "examples has a Batch; expected pairs"),
        (model, [pair[::-1]], "examples has a tuple of Texts; expected pairs"),
        (model, [], "examples has 0 images and 0 captions in its first batch"),
        (model, [few], f"examples has {count} images and 2 captions in its first batch"),
    ):
        with pytest.raises(InputError, match=message):
            export_onnx(given, examples, tmp_path / "new/onnx")
    assert not list(tmp_path.iterdir())


def test_command_refuses_what_it_cannot_use(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words, message in (
        (["run", "--batches=-1"], "batches is -1; expected 1 or more"),
        (["run", "--batches=0"], "batches is 0; expected 1 or more"),
        (["no/such"], "run is 'no/such': neither the folder of a run"),
    ):
        with pytest.raises(SystemExit):
            main(["export", *words])
        assert message in capsys.readouterr().err


def test_missing_package_is_told_before_the_run_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(extra: str, *requirements: str) -> None:
        raise InputError(f"onnx is not installed: pip install 'itmkit[{extra}]'")

    monkeypatch.setattr("itmkit.export.export.require_extra", missing)
    with pytest.raises(SystemExit):
        main(["export", "no/such"])
    assert "onnx is not installed: pip install 'itmkit[export]'" in capsys.readouterr().err


def test_run_without_a_validation_split_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").touch()
    dataset = dataset_of(SYSTEMS["dual_encoder"], 2)
    data = ImageTextData(dataset, train_split="val", val_split=None)
    monkeypatch.setattr("itmkit.systems.load_run", lambda run: (None, data))
    with pytest.raises(SystemExit):
        main(["export", str(tmp_path)])
    assert "which has no validation split" in capsys.readouterr().err


def test_second_export_to_one_folder_is_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".onnx.lock"), pytest.raises(InputError, match="by another process"):
        _export("dual_encoder", tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == [".onnx.lock"]


def test_folder_that_holds_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    for folder in (tmp_path, tmp_path / "mine"):
        with pytest.raises(InputError, match="which holds files; expected a new folder"):
            _export("dual_encoder", folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
