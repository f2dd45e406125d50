"""The table on the terminal and the file in the run folder."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch

from itmkit.metrics.functional import cross_modal_recall
from itmkit.retrieval.report import EvaluatedOn, recall_table, write_metrics

IDS = torch.arange(3)
PERFECT = cross_modal_recall(torch.eye(3), IDS, IDS)
WORST = cross_modal_recall(-torch.eye(3), IDS, IDS)


def test_table():
    table = recall_table({"untrained": WORST, "trained, step 2000": PERFECT})
    lines = table.splitlines()
    assert "image to text" in lines[0]
    assert lines[1].split() == ["R@1", "R@5", "R@10", "medR"] * 2 + ["rSum"]
    assert lines[3].split() == "untrained 0.0 100.0 100.0 3.0 0.0 100.0 100.0 3.0 400.0".split()
    assert lines[4].split()[3:] == "100.0 100.0 100.0 1.0 100.0 100.0 100.0 1.0 600.0".split()
    assert len({len(line) for line in lines[1:]}) == 1
    # Every number ends under the last letter of its head.
    for head in ("R@1", "medR", "rSum"):
        end = lines[1].index(head) + len(head)
        assert lines[3][end - 1].isdigit()


def test_table_takes_tensors_and_missing_keys():
    row = recall_table({"a": {"t2i_r1": torch.tensor(12.34)}}).splitlines()[-1]
    assert row.split() == "a - - - - 12.3 - - - -".split()
    with pytest.raises(ValueError, match="expected at least one"):
        recall_table({})


def test_write_metrics_merges(tmp_path):
    path = tmp_path / "run" / "metrics.json"
    write_metrics(path, {"i2t_r1": torch.tensor(51.6), "rsum": 500}, "val")
    write_metrics(path, PERFECT, "test")
    content = json.loads(path.read_text())
    assert (content["val/i2t_r1"], content["test/rsum"]) == (51.6, 600)
    assert len(content) == 2 + len(PERFECT)
    write_metrics(path, {"rsum": 501.23456}, "val")  # measured again, without i2t_r1
    again = json.loads(path.read_text())
    del content["val/i2t_r1"]
    assert again == content | {"val/rsum": 501.2346}
    assert os.listdir(path.parent) == ["metrics.json"]


def test_error_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "metrics.json"
    write_metrics(path, {"rsum": 1.0}, "val")
    before = path.read_text()
    with pytest.raises(ValueError, match=r"metrics of test is .*; expected finite"):
        write_metrics(path, {"rsum": float("nan")}, "test")
    with pytest.raises(ValueError, match=r"stage is .*; expected a name"):
        write_metrics(path, {"rsum": 2.0}, "")

    def full(*_):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_metrics(path, {"rsum": 2.0}, "test")
    assert path.read_text() == before
    assert os.listdir(tmp_path) == ["metrics.json"]


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[1]", "JSON object")])
def test_error_other_file(tmp_path, text, message):
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        write_metrics(path, {"rsum": 1.0}, "val")
    assert path.read_text() == text


def test_what_metrics_are_of_stands_beside_them(tmp_path):
    path = tmp_path / "metrics.json"
    write_metrics(path, {"rsum": 1.0}, "val", EvaluatedOn("val", 2, 10, "best.ckpt", 7))
    write_metrics(path, {"rsum": 2.0}, "test", EvaluatedOn("test", 3, 15, None, 0, (1, 4)))
    content = json.loads(path.read_text())
    assert content["val/rsum"] == 1.0
    assert content["about"]["val"] == {
        "split": "val",
        "images": 2,
        "captions": 10,
        "checkpoint": "best.ckpt",
        "step": 7,
        "batches": None,
        "protocol": None,
        "intervals": None,
        "queries": None,
        "probes": None,
    }
    assert content["about"]["test"]["batches"] == [1, 4]
    bounds = {"rsum": (1.23456, 3.0)}
    write_metrics(
        path, {"rsum": 2.0}, "test", EvaluatedOn("test", 3, 15, None, 0, None, "a", bounds)
    )
    content = json.loads(path.read_text())["about"]["test"]
    assert (content["protocol"], content["intervals"]) == ("a", {"rsum": [1.2346, 3.0]})
    write_metrics(path, {"rsum": 3.0}, "val")  # of something unknown
    assert json.loads(path.read_text())["about"].keys() == {"test"}
