"""``itmkit test`` and ``validate`` with protocols and intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_cli import refused, run, table_rows

from itmkit.cli import main
from itmkit.evaluation import compare_runs, read_queries
from itmkit.metrics import PROTOCOLS, Protocol

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
        (["test", "--report=true"], "report is an option of fit, not of test"),
        (["test", "--keep=0", "--trec=true"], "keep is 0 with trec; expected how many items"),
        (["predict", "--keep=2"], "keep is an option of test and validate, not of predict"),
        (
            ["test", "--protocol=2", "--protocol_files=a"],
            "protocol_files is given for the protocol",
        ),
        (["test", "--protocol_files=a"], "which has no judgements; expected one of 'cxc', 'eccv'"),
        (["fit", "--protocol_files=a"], "protocol_files is an option of test and validate, not of"),
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


def test_probes(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data.dataset=ShapesDataset", "--data.dataset.length=6", "--model.words=40"]
    folder = run("test", "--protocol=probes", *options, "--data.dataset.image_size=16")
    told = capsys.readouterr().out
    assert "test, protocol probes: 6 images × 30 captions" in told
    assert "\nprobes, right of two sentences (chance 50 %): colours " in told
    metrics = json.loads((folder / "metrics.json").read_text())
    about = metrics["about"]["test"]["probes"]
    assert about["colours"]["pairs"] == 30
    with pytest.raises(SystemExit):
        run("test", "--protocol=probes", *options, "--trainer.precision=bf16-true")
    assert "trainer.precision is 'bf16-true' with the protocol" in capsys.readouterr().err
    for kind in ("colours", "relations"):
        assert metrics[f"test/probe_{kind}"] == pytest.approx(about[kind]["accuracy"], abs=1e-4)


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The options of a protocol with judgements of four tiny images; one is a query."""
    monkeypatch.setitem(PROTOCOLS, "cxc", Protocol(images=4, judgements="cxc"))
    captions = ["a red field", "a green field", "a blue field", "a black field"]
    entries = [
        {
            "filename": f"{row}.jpg",
            "cocoid": 50 + row,
            "split": "test",
            "sentences": [{"raw": caption, "tokens": [], "sentid": row}],
        }
        for row, caption in enumerate(captions)
    ]
    Path("coco.json").write_text(json.dumps({"images": entries}))
    rows = ["x:0,a_50.jpg,4.5,c2i_original", "x:1,a_50.jpg,3.1,c2i_intrasim"]
    rows += ["x:2,a_52.jpg,1.0,c2i_original"]
    Path("sits_test.csv").write_text("\n".join(["caption,image,agg_score,sampling_method", *rows]))
    return ["--protocol=cxc", "--protocol_files=[sits_test.csv, coco.json]"]


def test_judgements(judged: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("test", "--trec=true", *judged)
    told = capsys.readouterr().out
    assert "test, protocol cxc: 4 images × 4 captions (1 and 2 of them queries), no chec" in told
    assert "nDCG    RP mAP@R" in told
    metrics = json.loads((folder / "metrics.json").read_text())
    about = metrics["about"]["test"]
    assert (about["queries"], about["captions"]) == ([1, 2], 4)
    for key in ("i2t_r1", "t2i_ndcg10", "i2t_map_at_r"):
        low, high = about["intervals"][key]
        assert low <= metrics[f"test/{key}"] <= high
    table = read_queries(folder).table.to_pylist()
    assert [row["id"] for row in table] == [0, 0, 1]
    names = {one["caption"]: one["image"] for one in table[0]["best"]}
    assert names["a black field"] == "3.jpg"  # also of captions that are no queries
    assert (folder / "trec/i2t.qrels").read_text() == "i0 0 t0 4\ni0 0 t1 3\n"
    assert (
        json.loads((run("test") / "metrics.json").read_text())["about"]["test"]["queries"] is None
    )


def test_judgements_of_an_ensemble(judged: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        run("fit", f"--name={name}", "--trainer.max_epochs=1")
    files = ["--protocol_files", "sits_test.csv", "coco.json"]
    main(["test", "--ensemble", "a", "b", judged[0], *files])
    assert "(1 and 2 of them queries)" in capsys.readouterr().out


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


def test_ensemble_of_two_systems(capsys: pytest.CaptureFixture[str]) -> None:
    first = run("fit", "--name=a", "--model.rate=0.5", "--trainer.max_epochs=4")
    run("fit", "--name=b", "--model=tiny_matcher.OtherMatcher", "--seed_everything=5")
    alone = run("test", "--name=a", f"--ckpt_path={first}")
    capsys.readouterr()
    main(["test", "--ensemble", "a", "runs/b/latest", "--name=both", "--trec=true"])
    (folder,) = Path("runs/both").iterdir()
    told = capsys.readouterr().out
    assert table_rows(told)[-1] == "ensemble"
    assert len(table_rows(told)) == 3
    assert "test: 4 images × 4 captions\n" in told
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["about"]["test"]["intervals"].keys() >= {"rsum"}
    recall = read_queries(folder).folds[0].recall()
    assert recall["rsum"] == pytest.approx(metrics["test/rsum"], abs=1e-4)
    assert (folder / "trec/t2i.run").is_file()
    found = compare_runs([alone, folder])
    assert found.recalls[1]["rsum"] == pytest.approx(metrics["test/rsum"], abs=1e-4)
    assert [Path(one).parent.name for one in found.options["ensemble"][1]] == ["a", "b"]
    main(["validate", "--ensemble", "a", "b", "--name=val"])
    (folder,) = Path("runs/val").glob("*-validate")
    assert read_queries(folder).about["split"] == "val"
    own = json.loads((first / "metrics.json").read_text())["val/rsum"]
    assert f" {own:.1f}\n" in capsys.readouterr().out  # the row of the first run
    assert json.loads((folder / "metrics.json").read_text())["about"]["val"]["captions"] == 4


def test_an_ensemble_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run("fit", "--name=a", "--trainer.max_epochs=1")
    run("fit", "--name=b", "--trainer.max_epochs=1", "--data.dataset.prefixes={test: b}")
    run("fit", "--name=c", "--trainer.max_epochs=1")
    for words, message in [
        (["a"], "ensemble has 1 runs; expected two or more"),
        (["a", "nothing"], "run is 'nothing': neither the folder of a run nor the NAME"),
        (["a", "runs/a"], "ensemble has 'a' and 'runs/a', which are both "),
        (["a", "b", "--protocol=probes"], "protocol is 'probes' with an ensemble; expected one"),
        (["a", "c", "--protocol=3"], "folds is 3; expected a divisor of the 4 images"),
        (["a", "b"], "other captions in its split 'test' than"),
    ]:
        with pytest.raises(SystemExit):
            main(["test", "--ensemble", *words])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["predict", "--ensemble", "a", "b"])
    assert "--ensemble is an option of itmkit validate and test; " in capsys.readouterr().err
    assert sorted(path.name for path in Path("runs").iterdir()) == ["a", "b", "c"]
