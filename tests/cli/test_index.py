"""``itmkit index`` and ``itmkit search``, as typed, on real JPEGs and a run of one step."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import pytest

import itmkit
from itmkit.cli import main
from itmkit.systems import load_run
from tests.retriever.conftest import photos, pixel_run  # noqa: F401


@pytest.fixture
def run(pixel_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: F811
    """In the folder of ``runs``, where ``mine`` is a name."""
    monkeypatch.chdir(pixel_run.parent.parent.parent)
    return pixel_run


def found(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    capsys.readouterr()
    main(["search", *words, "--json"])
    hits: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return hits


def test_by_name(
    run: Path,
    photos: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    main(["index", str(photos / "images"), "--model", "mine"])
    out = capsys.readouterr().out
    assert "8 pictures, 8 added\nindex: runs/mine/index" in out
    assert "hits have no probabilities: 10 queries" in out
    hits = found(capsys, "mine", "a red dog", "-k", "3")
    assert len(hits) == 3
    assert sorted(hits[0]) == ["path", "probability", "score"]
    index = itmkit.load("mine").open_index("runs/mine/index")
    assert [hit.score for hit in index.search("a red dog", k=3)] == [hit["score"] for hit in hits]
    assert found(capsys, "runs/mine/index", "a red dog", "-k", "3") == hits
    assert found(capsys, "mine", "null", "-k", "1")  # a word, here
    query = photos / "images" / "5.jpg"
    assert found(capsys, "mine", "--image", str(query), "-k", "1")[0]["path"] == str(query)
    page = tmp_path / "hits.html"
    main(["search", "mine", "a red dog", "--html", str(page)])
    assert page.read_text().count("data:image/webp") == 8
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_probabilities_of_a_checkpoint_and_of_a_saved_model(
    run: Path,
    photos: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Learnt with the weights of the index; where there is nothing to learn from, that is said."""
    last, saved = str(run / "checkpoints/last.ckpt"), str(tmp_path / "saved")
    itmkit.load(run).save_pretrained(saved)
    words = ["index", str(photos / "images"), "--output"]
    main([*words, str(tmp_path / "s"), "--model", saved])
    assert (
        f"hits have no probabilities: model is {saved}; expected a run" in capsys.readouterr().out
    )
    main([*words, str(tmp_path / "s"), "--model", saved, "--calibrate", "false"])
    assert "hits have" not in capsys.readouterr().out
    with patch("itmkit.retriever.calibrate.load_run", wraps=load_run) as loading:
        main([*words, str(tmp_path / "c"), "--model", last])
    assert loading.call_args.kwargs == {"checkpoint": Path(last).resolve()}
    assert "hits have no probabilities: 10 queries" in capsys.readouterr().out


def test_own_columns(
    run: Path,
    photos: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    (tmp_path / "years.csv").write_text("file_name,year\n1.jpg,2018\n2.jpg,2021\n")
    words = ["--model", "mine", "--output", str(tmp_path / "i"), "--table"]
    main(["index", str(photos / "images"), *words, str(tmp_path / "years.csv")])
    hits = found(capsys, str(tmp_path / "i"), "a red dog", "--where", "year > 2019")
    assert [Path(str(hit["path"])).name for hit in hits] == ["2.jpg"]


def test_shards(
    run: Path,
    photos: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    for i in ("1", "2"):
        words = ["--model", "mine", "--output", str(tmp_path / i), "--shard", f"{i}/2"]
        main(["index", str(photos / "images"), *words])
    parts = json.dumps([str(tmp_path / "1"), str(tmp_path / "2")])
    with pytest.raises(SystemExit):
        main(["index", str(photos), "--merge", parts, "--output", str(tmp_path / "all")])
    assert f"photos is '{photos}', and the indexes are of" in capsys.readouterr().err
    main(["index", str(photos / "images"), "--merge", parts, "--output", str(tmp_path / "all")])
    assert "8 pictures" in capsys.readouterr().out
    assert len(found(capsys, str(tmp_path / "all"), "a red dog")) == 8


@pytest.mark.extras
def test_factory(
    run: Path,
    photos: Path,  # noqa: F811
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    pytest.importorskip("faiss", reason="needs itmkit[faiss]")
    words = ["index", str(photos / "images"), "--model", "mine", "--output", str(tmp_path / "i")]
    words += ["--factory", "Flat"]
    with pytest.raises(SystemExit):
        main(words)
    error = capsys.readouterr().err.strip()
    assert "different sentences; expected at least 50" in error  # captions to validate on
    assert "\n" not in error
    assert not (tmp_path / "i").exists()
    queries = tmp_path / "queries.txt"
    queries.write_text("\n".join(f"a dog and {number} cats" for number in range(50)))
    main([*words, "--queries", str(queries)])
    out = capsys.readouterr().out
    assert "faiss: Flat finds 100.0% of the 10 best pictures of a sentence and 100.0%" in out
    assert len(found(capsys, str(tmp_path / "i"), "a red dog", "-k", "3")) == 3
    (tmp_path / "years.csv").write_text("file_name,year\n1.jpg,2018\n")
    main([*words[:-2], "--table", str(tmp_path / "years.csv")])  # keeps string and sentences
    assert "faiss: Flat finds 100.0%" in capsys.readouterr().out
    generation = json.loads((tmp_path / "i" / "manifest.json").read_text())["generation"]
    assert json.loads((tmp_path / "i" / "faiss.json").read_text())["generation"] == generation == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["index", "nowhere", "--model", "mine"], "nowhere' is not a folder"),
        (["index", "."], "model is null; expected the name of a run"),
        (
            ["index", ".", "--model", "org/clip"],
            "model 'org/clip' is no run (runs/NAME/latest)",
        ),
        (["index", ".", "--model", "mine", "--shard", "2"], "shard is '2'; expected i/k"),
        (["search", "nothing", "a dog"], "index is 'nothing': neither an index nor a run"),
        (["index", ".", "--model", "mine", "--device", "gpu"], "device is 'gpu'; expected one"),
        (
            ["index", ".", "--merge", "[a]", "--output", "b", "--factory", "Flat"],
            "factory is Flat, without effect with merge; expected none",
        ),
        (
            ["index", ".", "--merge", "[a]", "--output", "b", "--table", "t.csv"],
            "table is t.csv, without effect with merge; expected none",
        ),
        (
            ["index", ".", "--merge", "[a]", "--output", "b", "--model", "mine"],
            "model is mine, without effect with merge",
        ),
        (
            ["index", ".", "--merge", "[a]", "--output", "b", "--dtype", "float32"],
            "dtype is float32, without effect with merge",
        ),
        (["search", "nothing"], "query is null; expected a sentence, or --image"),
        (["search", "mine", "a dog", "--html", "runs"], "html is 'runs', a folder; expected the"),
        (["search", "mine", "a dog", "--html", ""], "html is '.', a folder; expected the path"),
    ],
)
def test_one_line_errors(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
