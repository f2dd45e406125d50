"""``itmkit test`` and ``validate`` with protocols and intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_cli import refused, run

pytestmark = pytest.mark.usefixtures("tiny_folder")


@pytest.mark.parametrize(("command", "stage"), [("test", "test"), ("validate", "val")])
def test_protocol(command: str, stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(command, "--protocol", "2")
    told = capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())
    about = metrics["about"][stage]
    assert (about["protocol"], about["images"], about["captions"]) == ("2 folds", 4, 4)
    assert f"{stage}, protocol 2 folds: 4 images × 4 captions, no checkpoint, step 0\n" in told
    for key in ("i2t_r1", "t2i_r1", "rsum"):
        mean, *folds = (metrics[f"{stage}/{fold}{key}"] for fold in ("", "fold_1/", "fold_2/"))
        assert mean == sum(folds) / 2
        low, high = about["intervals"][key]
        assert low <= mean <= high
    rows = [line.split()[:2] for line in told.splitlines() if line.startswith("  ")]
    assert rows[-4:] == [["fold", "1"], ["fold", "2"], ["95", "%"], ["95", "%"]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test", "--protocol=coco-1k"], "protocol is 'coco-1k', the split 'test': the gallery ha"),
        (["validate", "--protocol=3"], "the split 'val': folds is 3; expected a divisor of the 4"),
        (["test", "--protocol=coco"], "protocol is 'coco'; expected one of 'f30k-1k', 'coco-5k'"),
        (["fit", "--protocol=2"], "protocol is an option of test and validate, not of fit"),
    ],
)
def test_a_protocol_that_does_not_fit_is_refused_before_anything_is_encoded(
    words: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tiny_matcher.TinyMatcher.encode_image", None)
    assert message in refused(capsys, words[0], "--config", "tiny.yaml", *words[1:])
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["tiny.yaml"]
