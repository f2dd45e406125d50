"""Searching an index: against a naive search, with conditions, by a picture, in two stages."""

from __future__ import annotations

import datetime
import decimal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from itmkit.checks import InputError
from itmkit.index import Index, build_index, exact_scores
from itmkit.index import search as search_module
from itmkit.index.exact_scores import best_places, close_pairs
from itmkit.index.where import matching_rows
from itmkit.nn import HubnessCorrection, l2_normalize
from itmkit.report.page import write_hits
from tests.support.pictures import COLOURS, ColourEncoder, save_picture

COUNT = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("search")
    names, colours = [], list(COLOURS)
    for row in range(COUNT):
        name = f"{row:02d}.jpg"
        save_picture(root / "photos" / name, colours[row % 4], shade=row)
        names.append(name)
    columns = {
        "year": {name: 2000 + row for row, name in enumerate(names)},
        "place": {name: "beach" if row % 2 else "town" for row, name in enumerate(names)},
        "taken by": dict.fromkeys(names, "O'Hara"),
    }
    build_index(ColourEncoder(), root / "photos", root / "i", columns=columns, progress=False)
    return root / "i"


@pytest.fixture
def index(folder: Path) -> Index:
    return Index(folder, ColourEncoder())


def test_by_words(index: Index) -> None:
    hits = index.search("a red thing", k=6)
    assert [int(hit.path.stem) % 4 for hit in hits] == [0] * 6
    assert all(a.score >= b.score for a, b in pairwise(hits))
    assert hits[0].path.is_file()
    assert hits[0].columns["place"] == "town"
    assert hits[0].probability is None
    assert [index.items["path"][hit.row].as_py() for hit in hits] == [h.path.name for h in hits]


@pytest.mark.parametrize("tile", [1, 100, 1 << 25])
def test_naive_loop_reference(index: Index, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_scores, "_TILE_BYTES", tile)
    encoder = index.encoder
    paths = [index.root / path for path in index.items["path"].to_pylist()]
    query = encoder.encode_texts(["blue white"])
    scores = encoder.model.score(encoder.encode_images(paths), query)[:, 0].tolist()
    expected = sorted(range(COUNT), key=lambda row: (-scores[row], row))
    hits = index.search("blue white", k=COUNT + 5)
    assert [hit.path for hit in hits] == [paths[row] for row in expected]
    np.testing.assert_allclose([h.score for h in hits], [scores[r] for r in expected], rtol=1e-5)


def test_many_queries(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "_QUERIES", 2)
    queries = ["red", "blue white", "green"]
    assert index.search_many(queries, k=5) == [index.search(query, k=5) for query in queries]
    assert index.search_many([]) == []


def test_where(index: Index) -> None:
    hits = index.search("red", k=99, where="year > 2010 and place = 'beach'")
    assert sorted(int(hit.path.stem) for hit in hits) == list(range(11, COUNT, 2))
    assert index.search("red", where="year > 3000") == []
    assert len(index.search("red", k=99, where="\"taken by\" LIKE 'O''%'")) == COUNT
    assert len(index.search("red", k=99, where="path IN ('00.jpg', '01.jpg')")) == 2


@pytest.mark.parametrize(
    "where",
    [
        "yaer > 3",
        "year >",
        "1); DROP TABLE items; --",
        "(SELECT load_extension('x'))",
        "1) UNION SELECT 999 FROM sqlite_master WHERE (1",
        "(SELECT count(*) FROM items a, items b) > 0",
        "randomblob(900000000) IS NULL",
        "place > '\udce9'",
        "",
    ],
)
def test_where_that_is_no_condition(index: Index, where: str) -> None:
    with pytest.raises(InputError, match=r"where is .*; expected a condition on the columns path"):
        index.search("red", where=where)


def test_where_suggests_a_column(index: Index) -> None:
    with pytest.raises(InputError, match="Did you mean 'year'"):
        index.search("red", where="yaer > 3")


def test_where_on_other_types() -> None:
    table = pa.table({"day": pa.array([1, 2], pa.date32()), "ok": [True, None], "x": [0.5, 1.5]})
    assert matching_rows(table, "day > '1970-01-02'").tolist() == [1]
    assert matching_rows(table, "ok").tolist() == [0]
    assert matching_rows(table, "x < 1 OR ok IS NULL").tolist() == [0, 1]
    own = pa.table({"itmkit row": [5, 6]})
    assert matching_rows(own, '"itmkit row" > 5').tolist() == [1]
    nested = pa.table({"a": [{"b": 1}, {"b": 2}], "c": [[1, 2], None]})
    assert matching_rows(nested, "json_extract(a, '$.b') = 2").tolist() == [1]
    assert matching_rows(nested, "c = '[1, 2]'").tolist() == [0]


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("year > 2019", [1]),
        ("NOT year <= 2019.5", [1]),
        ('2019 < "Year"', [1]),
        ("items.year >= +300 AND place = 'beach'", [0]),
        ("year BETWEEN 2018 AND 2019", [0]),
        ("year NOT IN (2018, 5)", [1, 2]),
        ("[year] IS NOT 2018", [1, 2, 3]),
        ("year = '2020.0' OR year = '300'", [2]),
        ("year > size", [0, 1]),
        ("size < year", [0, 1]),
        ("year LIKE '20%' OR place = 'year > 300'", [0]),
        ("size > '5' AND '1000' >= size", [1, 2]),
        ("3000 > items.year AND items.size < 9", [0]),
    ],
)
def test_numbers_are_compared_as_numbers(where: str, rows: list[int]) -> None:
    table = pa.table(
        {
            "year": ["2018", " 2020", "300", ""],
            "place": ["beach", "town", "5", None],
            "size": [5, 1000, 1000, 2000],
        }
    )
    assert matching_rows(table, where).tolist() == rows


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "year > 2019",
            r"column 'year' with a number, and it has 'unknown'; expected numbers alone",
        ),
        ("day > 2019", r"column 'day' with a number, and it has '1970-01-02'"),
        ('"o\'clock" > 3', r"column \"o'clock\" with a number, and it has 'x'"),
        ("size > 'large'", "column 'size' holds numbers, not 'large'; expected a number"),
        ("size != ''", "column 'size' holds numbers, not ''"),
        ("2018 < size <= 2020", "not read as a range; expected two conditions, such as size > 1"),
    ],
)
def test_numbers_and_other_text(where: str, message: str) -> None:
    table = pa.table(
        {
            "year": ["2018", "unknown"],
            "day": pa.array([1, 2], pa.date32()),
            "o'clock": ["x", "y"],
            "size": [1, 2],
        }
    )
    with pytest.raises(InputError, match=message):
        matching_rows(table, where)
    assert matching_rows(table, "\"year\" <> 'unknown' AND (year > 2000)").tolist() == [0]


def test_where_that_nothing_meets(index: Index, recwarn: pytest.WarningsRecorder) -> None:
    picture = Image.new("RGB", (9, 9))
    for image in (None, picture):
        assert index.search("red", image=image, where="0") == []
    assert not recwarn


def test_page_of_a_query_that_is_not_utf8(index: Index, tmp_path: Path) -> None:
    write_hits(tmp_path / "page.html", index, index.search("red", 1), "caf\udce9")
    assert "caf?" in (tmp_path / "page.html").read_text()


def test_by_a_picture(index: Index, tmp_path: Path) -> None:
    query = save_picture(tmp_path / "query.jpg", "green", shade=99)
    for image in (query, Image.open(query)):
        hits = index.search(image=image, k=6)
        assert [int(hit.path.stem) % 4 for hit in hits] == [1] * 6


def test_pictures_are_compared_without_a_correction_for_sentences(
    index: Index, folder: Path, tmp_path: Path
) -> None:
    encoder = ColourEncoder("corrected")
    correction = HubnessCorrection(4, neighbours=2)
    correction.complete(3)
    colours = torch.rand(2, 4, 3, generator=torch.Generator().manual_seed(0))
    correction.fill(*l2_normalize(colours))
    encoder.model.hubness_correction = correction
    photos = folder.parent / "photos"
    build_index(encoder, photos, tmp_path / "i", progress=False)
    corrected = Index(tmp_path / "i", encoder)
    query = save_picture(tmp_path / "query.jpg", "green", shade=99)
    for own, theirs in zip(
        corrected.search(image=query, k=6), index.search(image=query, k=6), strict=True
    ):
        assert own.score == pytest.approx(theirs.score, abs=1e-3)
    pictures = encoder.encode_images([query])
    stored = torch.from_numpy(corrected._stored.fields["vector"])
    products = 1.5**0.5 * corrected.exact.picture_queries(pictures).vector @ stored.T
    torch.testing.assert_close(products, corrected.exact.of_pictures(pictures))
    assert len(corrected.near_duplicates(0.99)) == len(index.near_duplicates(0.99))
    words = [(one.path, one.score) for one in corrected.search("red", k=6)]
    assert words != [(one.path, one.score) for one in index.search("red", k=6)]


def test_by_words_and_a_picture(index: Index, tmp_path: Path) -> None:
    query = save_picture(tmp_path / "query.jpg", "green", shade=99)
    encoder = index.encoder
    scores = []
    vectors = torch.from_numpy(index._stored.fields["vector"])
    for own in (encoder.encode_images([query]), encoder.encode_texts(["blue"])):
        cosines = (vectors @ own.vector[0]).numpy()
        scores.append((cosines - cosines.mean()) / cosines.std())
    mean = (scores[0] + scores[1]) / 2
    hits = index.search("blue", image=query, k=COUNT)
    assert [int(hit.path.stem) for hit in hits[:5]] == np.argsort(-mean)[:5].tolist()
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(mean)[::-1], atol=1e-4)


def test_words_that_differ_by_rounding_alone_count_nothing(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    query = save_picture(tmp_path / "query.jpg", "green", shade=99)
    alone = [hit.path for hit in index.search(image=query, k=COUNT)]
    noise = 0.5 + 1e-7 * torch.randn(1, COUNT, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(index.exact, "of_texts", lambda *_: noise)
    assert [hit.path for hit in index.search("blue", image=query, k=COUNT)] == alone


def test_second_stage(folder: Path) -> None:
    index = Index(folder, ColourEncoder(second_stage=True, rerank_top_k=6, rerank_weight=1.0))
    plain = index.search("red", k=6, top_k=0)
    hits = index.search("red", k=4)
    assert {hit.path for hit in hits} < {hit.path for hit in plain}

    def brightness(path: Path) -> float:
        return -float(index.encoder.encode_images([path]).tokens.mean())

    expected = sorted((brightness(hit.path) for hit in plain), reverse=True)[:4]
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)


def test_near_duplicates(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_scores, "_TILE_BYTES", 100)
    pairs = index.near_duplicates(0.999)
    vectors = torch.from_numpy(index._stored.fields["vector"])
    naive = {
        (f"{a:02d}.jpg", f"{b:02d}.jpg")
        for a in range(COUNT)
        for b in range(a + 1, COUNT)
        if vectors[a] @ vectors[b] >= 0.999
    }
    assert naive
    assert {pair[:2] for pair in pairs} == naive


def test_equal_vectors_reach_a_threshold_of_one() -> None:
    units = F.normalize(torch.randn(50, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    assert close_pairs(units, units, 1.0) == [(row, row, pytest.approx(1.0)) for row in range(50)]
    assert all(cosine <= 1 for *_, cosine in close_pairs(units, units, 0.5))


def test_ties_come_in_the_order_of_rows() -> None:
    scores = torch.tensor([0.0, 1.0] * 50)
    values, places = best_places(scores, 7)
    assert places.tolist() == [1, 3, 5, 7, 9, 11, 13]
    assert values.tolist() == [1.0] * 7
    assert best_places(scores, 52)[1].tolist()[50:] == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "query and image are both None"),
        ({"query": "  "}, "query is '  '; expected a sentence"),
        ({"query": "red", "k": 0}, "k is 0"),
    ],
)
def test_errors(index: Index, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        index.search(**arguments)


def test_errors_of_wrong_types(index: Index) -> None:
    with pytest.raises(InputError, match="top_k is 'a'; expected a whole number"):
        index.search("red", top_k="a")
    for name in ("top_k", "weight"):
        with pytest.raises(InputError, match=f"{name} is 1 with an image; expected None"):
            index.search("red", image=np.zeros((8, 8, 3), np.uint8), **{name: 1})
    with pytest.raises(InputError, match=r"weight is 0\.5, but rerank_top_k of the model is 0"):
        index.search("red", weight=0.5)
    with pytest.raises(InputError, match="calibration is an int; expected"):
        index.calibrate(3)
    for threshold in ("a", None, [0.5], 0, 1.5):
        with pytest.raises(InputError, match=r"threshold is .*; expected a"):
            index.near_duplicates(threshold)


def test_score_that_is_not_finite(index: Index) -> None:
    with torch.no_grad():
        index.encoder.model.weight.fill_(1)
    index._stored.fields["vector"][3] = np.nan
    with pytest.raises(InputError, match="score of picture 3 is nan; expected a finite number"):
        index.search("red")


def test_a_picture_needs_vectors(index: Index, tmp_path: Path) -> None:
    del index._stored.fields["vector"]
    with pytest.raises(InputError, match="ColourMatcher makes no vector of a picture"):
        index.search(image=save_picture(tmp_path / "query.jpg"))


def test_where_on_every_type_that_a_table_may_have() -> None:
    table = pa.table(
        {
            "price": [decimal.Decimal("1.50"), None],
            "raw": [b"\xff", b"a"],
            "kind": pa.array(["cat", "dog"]).dictionary_encode(),
            "long": pa.array(["x", "y"], pa.large_string()),
            "age": [datetime.timedelta(1), datetime.timedelta(2)],
        }
    )
    assert matching_rows(table, "price = '1.50'").tolist() == [0]
    assert matching_rows(table, "kind = 'dog' AND long = 'y'").tolist() == [1]
    assert matching_rows(table, "raw LIKE '%a%'").tolist() == [1]
    assert matching_rows(table, "age IS NOT NULL").tolist() == [0, 1]
