"""Systems as ONNX files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from systems import SYSTEMS, make_batch

from itmkit.checks import InputError
from itmkit.export import check_best, export_onnx

pytestmark = [
    pytest.mark.extras,
    pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs itmkit[export]"),
]


def _export(name: str, folder: Path) -> None:
    torch.manual_seed(0)
    case = SYSTEMS[name]
    batches = [make_batch(case, length=8), make_batch(case, length=6, batch_size=5)]
    export_onnx(case.make(), [(one.images, one.texts) for one in batches], folder)


@pytest.mark.parametrize(
    "name", ["mate", "daim", pytest.param("tvrn_sgr", marks=pytest.mark.long), "dual_encoder"]
)
def test_the_files_compute_what_the_system_does(name: str, tmp_path: Path) -> None:
    _export(name, tmp_path / "onnx")
    files = {path.name for path in (tmp_path / "onnx").iterdir()}
    assert {"image_encoder.onnx", "text_encoder.onnx", "score.onnx", "certificate.json"} <= files
    assert ("rerank.onnx" in files) == (name == "mate")


def test_nothing_is_left_where_they_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itmkit.export.TOLERANCE", -1.0)
    with pytest.raises(InputError, match="differs from the model"):
        _export("dual_encoder", tmp_path / "onnx")
    assert not list(tmp_path.iterdir())


def test_other_best_are_found_and_ties_are_not() -> None:
    right = torch.tensor([[0.5, 0.50001, 0.1] + [0.0] * 9])
    tied = right.clone()
    tied[0, 0] = 0.50002
    check_best(tied, right, "image")
    with pytest.raises(InputError, match="other best"):
        check_best(right.flip(1), right, "image")
