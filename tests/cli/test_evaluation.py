"""``itmkit test`` and ``validate`` with protocols and intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_cli import refused, run

from itmkit.evaluation import read_queries

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
        (["test", "--keep=0", "--trec=true"], "keep is 0 with trec; expected how many items"),
        (["predict", "--keep=2"], "keep is an option of test and validate, not of predict"),
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


def test_ranks_of_queries_are_written_unless_told_otherwise() -> None:
    folder = run("test", "--trec=true")
    found = read_queries(folder)
    about = json.loads((folder / "metrics.json").read_text())
    assert found.about["split"] == "test"
    assert found.folds[0].recall()["rsum"] == pytest.approx(about["test/rsum"], abs=1e-4)
    row = found.table.to_pylist()[-1]
    assert (row["image"], row["caption"], len(row["best"])) == ("3.jpg", "a black field", 4)
    assert sorted(path.name for path in (folder / "trec").iterdir()) == [
        "i2t.qrels", "i2t.run", "t2i.qrels", "t2i.run",
    ]  # fmt: skip
    assert not (run("test", "--keep=0") / "queries.parquet").exists()
