"""What the search page shows, without HTTP."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pytest
from pictures import ColourEncoder, save_picture

from itmkit.app.page import MOST_HITS, RequestError, SearchPage
from itmkit.index import Calibration, Index, build_index

COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def search_page(tmp_path: Path) -> SearchPage:
    names = [f"{row}.jpg" for row in range(8)]
    for row, name in enumerate(names):
        save_picture(tmp_path / "photos" / name, COLOURS[row % 4], shade=row, side=400)
    columns = {
        "year": {name: 2000 + row for row, name in enumerate(names)},
        "weight": dict(zip(names, [0.5, float("nan"), None], strict=False)),
    }
    build_index(
        ColourEncoder(),
        tmp_path / "photos",
        tmp_path / "mine.index",
        columns=columns,
        progress=False,
    )
    return SearchPage(Index(tmp_path / "mine.index", ColourEncoder()))


def names(answer: dict[str, object]) -> list[str]:
    hits = answer["hits"]
    assert isinstance(hits, list)
    return [hit["name"] for hit in hits]


def test_by_words(search_page: SearchPage) -> None:
    answer = search_page.search(" green ", 2)
    assert names(answer) == ["1.jpg", "5.jpg"]
    assert answer["hits"][0] == {
        "item": 1,
        "name": "1.jpg",
        "score": search_page.index.search("green", 1)[0].score,
        "probability": None,
        "columns": {"year": 2001},  # NaN and None are nothing
    }
    assert answer["note"] == ""
    assert answer["seconds"] > 0


def test_by_a_picture(search_page: SearchPage, tmp_path: Path) -> None:
    content = save_picture(tmp_path / "query.jpg", "blue", shade=9).read_bytes()
    assert set(names(search_page.search(picture=content, k=2))) == {"2.jpg", "6.jpg"}
    assert names(search_page.search(like=3, k=1)) == ["3.jpg"]
    both = search_page.search("blue", picture=content, k=8)
    hits = search_page.index.search("blue", 8, image=tmp_path / "query.jpg")
    assert names(both) == [hit.path.name for hit in hits]


def test_without_a_query_the_first_by_path(search_page: SearchPage) -> None:
    assert names(search_page.search(k=3)) == ["0.jpg", "1.jpg", "2.jpg"]
    assert names(search_page.search(where="year >= 2006")) == ["6.jpg", "7.jpg"]
    assert search_page.search(where="year > 3000")["hits"] == []
    assert search_page.search(k=1)["hits"][0]["score"] is None
    assert len(search_page.search(k=MOST_HITS)["hits"]) == 8


def test_note_that_nothing_matches(search_page: SearchPage) -> None:
    search_page.index.calibrate(Calibration((0.0, 0.0, 0.0, -4.0), 8, 0.5, 0.9, 0.8))
    answer = search_page.search("red")
    assert answer["note"].startswith("nothing matches")
    assert 0 < answer["hits"][0]["probability"] < 0.5
    assert search_page.search()["note"] == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k": 0}, "k is 0; expected 1 or more"),
        ({"k": MOST_HITS + 1}, "expected at most 500"),
        ({"words": "red", "where": "yaer > 3"}, "Did you mean 'year'"),
        ({"picture": b"no picture"}, "^picture is not a readable image"),
        ({"like": 8}, "item is 8; expected a number below 8"),
        ({"like": -1}, "item is -1"),
    ],
)
def test_errors(search_page: SearchPage, given: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        search_page.search(**given)  # type: ignore[arg-type]


def test_pictures_are_small_and_large(search_page: SearchPage, tmp_path: Path) -> None:
    small, large = search_page.picture(0), search_page.picture(0, "large")
    assert small is not None
    assert large is not None
    assert (small[:4], small[8:12]) == (b"RIFF", b"WEBP")
    assert len(small) < len(large)
    (tmp_path / "photos/0.jpg").unlink()
    assert search_page.picture(0) == small  # from memory
    assert search_page.picture(0, "large") is None


def test_a_folder_that_comes_back(search_page: SearchPage, tmp_path: Path) -> None:
    (tmp_path / "photos").rename(tmp_path / "away")
    assert search_page.picture(0) is None
    (tmp_path / "away").rename(tmp_path / "photos")
    assert search_page.picture(0) is not None


@pytest.mark.parametrize("path", ["../secret.jpg", "/etc/secret.jpg"])
def test_an_index_that_names_other_files(
    search_page: SearchPage, tmp_path: Path, path: str
) -> None:
    """It may come from anyone: no file outside its folder is served."""
    save_picture(tmp_path / "secret.jpg")
    items = search_page.index.items
    paths = pa.array([path, *items["path"].to_pylist()[1:]])
    search_page.index.items = items.set_column(0, "path", paths)
    with pytest.raises(RequestError, match=f"^the index names '{path}'; expected"):
        search_page.picture(0)


def test_a_picture_that_is_gone_or_damaged(search_page: SearchPage, tmp_path: Path) -> None:
    """Who sees the page is not told where its folder is."""
    (tmp_path / "photos/3.jpg").unlink()
    (tmp_path / "photos/4.jpg").write_bytes(b"no picture")
    errors = {3: "3.jpg is no longer in the folder of the pictures",
              4: "4.jpg cannot be read; expected a picture"}  # fmt: skip
    for item, error in errors.items():
        for ask in (lambda n: search_page.search(like=n), lambda n: search_page.explanation(n, "")):
            with pytest.raises(RequestError, match=f"^{error}$"):
                ask(item)
    assert search_page.picture(4) is None


def test_names_and_columns_are_text(search_page: SearchPage) -> None:
    """Of the page itself here; what the script shows, it shows as text."""
    evil = '"><script>alert(1)</script>'
    items = search_page.index.items
    search_page.index.items = items.rename_columns(
        [evil if name == "year" else name for name in items.column_names]
    )
    html = SearchPage(search_page.index, evil).html()
    assert html.count("&lt;script&gt;alert(1)") == 4  # title, heading, example and list of columns
    assert "<script>" not in html
    script = files("itmkit.app").joinpath("templates/app.js").read_text()
    for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert way not in script


def test_explanation_of_a_model_without_any(search_page: SearchPage) -> None:
    assert not search_page.can_explain
    with pytest.raises(RequestError, match="model is ColourEncoder; expected a Retriever"):
        search_page.explanation(0, "red")


def test_html(search_page: SearchPage) -> None:
    html = search_page.html()
    assert "<title>mine: search</title>" in html
    assert "8 pictures, ColourMatcher" in html
    assert "<code>year</code>" in html
    assert "://" not in html
    assert "style=" not in html  # the Content-Security-Policy has no inline styles and scripts
    assert "onclick" not in html


def test_a_model_that_compares_no_pictures(
    search_page: SearchPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DAIM and TVRN have no vectors: there is nothing to choose or to drop."""
    monkeypatch.setattr(Index, "has_vectors", False)
    html = search_page.html()
    assert 'data-likes="no"' in html
    assert "Choose a picture" not in html
