"""The search page over HTTP: what it answers, and to whom."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from itmkit.app import SearchPage, create_app, listen, serve
from itmkit.app.server import address_of
from itmkit.checks import InputError

pytestmark = pytest.mark.extras
anyio = pytest.importorskip("anyio", reason="needs itmkit[app]")
testclient = pytest.importorskip("starlette.testclient", reason="needs itmkit[app] and httpx2")

HERE = "http://127.0.0.1:8000"


@pytest.fixture
def client(search_page: SearchPage) -> Iterator[Any]:
    with testclient.TestClient(create_app(search_page, hosts=["Photos"]), base_url=HERE) as client:
        yield client


def picture_of(response: Any) -> Image.Image:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/webp"
    return Image.open(BytesIO(response.content))


def sent(name: str = "PNG", side: int = 40) -> bytes:
    content = BytesIO()
    Image.new("RGB", (side, side), "red").save(content, name)
    return content.getvalue()


def test_page_and_its_parts(client: Any) -> None:
    html = client.get("/").text
    for path in re.findall(r'(?:href|src)="([^"]+)"', html):
        assert client.get(path).status_code == 200
    assert client.get("/app.js").headers["content-type"].startswith("text/javascript")
    assert "14 pictures" in html


def test_the_page_says_whether_its_folder_is_there_now(
    client: Any, search_page: SearchPage
) -> None:
    root, told = search_page.index.root, "The folder of the pictures is not there"
    away = root.with_name("away")
    root.rename(away)
    try:
        assert told in client.get("/").text
    finally:
        away.rename(root)
    assert told not in client.get("/").text


def test_search(client: Any, search_page: SearchPage) -> None:
    asked = {"q": "a red dog", "k": "3", "where": "objects > 0"}
    answer = client.get("/search", params=asked).json()
    hits = search_page.index.search("a red dog", 3, where="objects > 0")
    assert [hit["score"] for hit in answer["hits"]] == [hit.score for hit in hits]
    assert [search_page.file(hit["item"]) for hit in answer["hits"]] == [hit.path for hit in hits]
    assert answer["hits"][0]["columns"] == hits[0].columns
    assert len(client.get("/search").json()["hits"]) == 14


def test_search_by_a_picture(client: Any, search_page: SearchPage) -> None:
    own = search_page.file(5).read_bytes()
    answer = client.post("/search", params={"k": 1}, content=own).json()
    assert answer["hits"][0]["item"] == 5
    like = client.get("/search", params={"like": 5, "k": 2}).json()
    assert like["hits"][0] == answer["hits"][0]
    both = client.post("/search", params={"k": 2, "q": "a red dog"}, content=sent()).json()
    assert len(both["hits"]) == 2


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/search?q=x&where=nothing+%3E+3", "where is 'nothing > 3'"),
        ("/search?k=many", "k is 'many'; expected a whole number"),
        ("/search?k=" + "1" * 5000, "expected a whole number"),
        ("/search?k=501", "k is 501; expected at most 500"),
        ("/search?like=14", "item is 14; expected a number below 14"),
        ("/explain/3", "q is empty; expected a sentence"),
        ("/picture/3?size=huge", "size is 'huge'; expected small or large"),
    ],
)
def test_errors_are_one_line(client: Any, path: str, message: str) -> None:
    response = client.get(path)
    assert response.status_code == 400
    assert message in response.json()["error"]
    assert "\n" not in response.json()["error"]


def test_what_is_no_picture(client: Any) -> None:
    for content, message in ((b"text", "picture is not a readable image"), (b"", "is empty")):
        response = client.post("/search", content=content)
        assert response.status_code == 400
        assert message in response.json()["error"]


def test_large_pictures_are_refused_before_they_are_read(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("itmkit.app.server.MOST_BYTES", 1000)
    in_parts = iter([b"x" * 600] * 5)
    for content in (b"x" * 1000, iter([b"x" * 1000])):  # as many as are allowed
        assert client.post("/search", content=content).status_code == 400
    for content in (b"x" * 1001, in_parts):
        response = client.post("/search", content=content)
        assert response.status_code == 413
        assert "picture has more than" in response.json()["error"]
    assert len(list(in_parts)) < 5


def test_pictures(client: Any) -> None:
    small, large = client.get("/picture/2"), client.get("/picture/2?size=large")
    assert picture_of(small).size == picture_of(large).size == (64, 64)
    again = client.get("/picture/2", headers={"if-none-match": small.headers["etag"]})
    assert again.status_code == 304
    assert large.headers["etag"] != small.headers["etag"]


@pytest.mark.parametrize(
    "path",
    ["/picture/14", "/picture/-1", "/picture/..%2f..%2fetc%2fpasswd", "/etc/passwd", "/picture/",
     "/app.html.jinja", "/explain/14?q=dog"],
)  # fmt: skip
def test_nothing_else_is_served(client: Any, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert "error" in response.json()


def test_explanation(client: Any, search_page: SearchPage) -> None:
    pytest.importorskip("matplotlib", reason="needs itmkit[report]")
    assert search_page.can_explain
    drawn = picture_of(client.get("/explain/1", params={"q": "a red dog"}))
    assert drawn.width > 500


def test_without_matplotlib_there_are_no_maps(
    client: Any, search_page: SearchPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(extra: str, *requirements: str) -> None:
        raise InputError(f"matplotlib is not installed: pip install 'itmkit[{extra}]'")

    monkeypatch.setattr("itmkit.app.page.require_extra", missing)
    assert not search_page.can_explain
    assert 'data-explains="no"' in search_page.html()
    response = client.get("/explain/1", params={"q": "a red dog"})
    assert response.status_code == 400
    assert response.json()["error"].endswith("pip install 'itmkit[report]'")


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:99", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7", "photos:80"],
)
def test_right_hosts(client: Any, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
     "photos.evil.example", "", "[::1", "[evil]"],
)  # fmt: skip
def test_foreign_hosts_are_refused(client: Any, host: str) -> None:
    """A name of another site that was made to lead here: DNS rebinding."""
    for path in ("/", "/search", "/picture/1"):
        response = client.get(path, headers={"host": host})
        assert response.status_code == 400
        assert response.json() == {
            "error": f"host is {host!r}; expected localhost or an IP address"
        }


def test_foreign_pages_cannot_post(client: Any) -> None:
    origins = {HERE: 200, "http://evil.example": 403, "null": 403, "http://[": 403, "": 403}
    for origin, status in origins.items():
        response = client.post("/search", content=sent(), headers={"origin": origin})
        assert response.status_code == status


def test_an_upload_that_breaks_off(client: Any) -> None:
    """Nobody waits for an answer; there is no fault, and no traceback in the terminal."""
    messages = [{"type": "http.request", "body": b"x", "more_body": True}]
    answers: list[Any] = []

    async def receive() -> Any:
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/search", "query_string": b""}
    anyio.run(client.app, scope | {"headers": [(b"host", b"localhost")]}, receive, send)
    assert answers[0]["status"] == 400


def test_every_answer_has_its_headers(client: Any) -> None:
    for path in ("/", "/search?k=0", "/picture/1", "/nowhere"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in policy
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
    foreign = client.get("/", headers={"host": "evil.example"})
    assert "content-security-policy" in foreign.headers


def test_a_fault_of_the_program(search_page: SearchPage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line for the browser; the traceback stays in the terminal."""
    client = testclient.TestClient(
        create_app(search_page), base_url=HERE, raise_server_exceptions=False
    )
    monkeypatch.setattr(search_page, "search", lambda *_, **__: 1 // 0)
    response = client.get("/search")
    assert response.status_code == 500
    assert response.json()["error"].startswith("ZeroDivisionError; the terminal of itmkit app")


def test_only_errors_of_requests_are_sent(
    client: Any, search_page: SearchPage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message may name files of this machine, as that of an index that is damaged does."""

    def damaged(*_: Any, **__: Any) -> None:
        raise InputError(f"{search_page.index.folder} is cut short")

    monkeypatch.setattr(search_page.index, "search", damaged)
    safe = testclient.TestClient(client.app, base_url=HERE, raise_server_exceptions=False)
    response = safe.get("/search?q=dog")
    assert response.status_code == 500
    assert response.json() == {"error": "InputError; the terminal of itmkit app has more of it"}


def test_addresses() -> None:
    with listen("127.0.0.1", 0) as one:
        port = one.getsockname()[1]
        assert address_of(one) == f"http://127.0.0.1:{port}/"
        with pytest.raises(InputError, match=f"port is {port}: Address already in use; expected"):
            listen("127.0.0.1", port)
    with pytest.raises(InputError, match="port is 65536; expected at most 65535"):
        listen("127.0.0.1", 65536)
    with pytest.raises(InputError, match="host is 'no such host'"):
        listen("no such host", 0)
    with listen("0.0.0.0", 0) as every:
        assert address_of(every).startswith("http://127.0.0.1:")


def test_ctrl_c_ends_it(search_page: SearchPage, monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    def run(self: uvicorn.Server, sockets: list[socket.socket]) -> None:
        raise KeyboardInterrupt  # as uvicorn does at its end

    monkeypatch.setattr(uvicorn.Server, "run", run)
    with listen("127.0.0.1", 0) as listening:
        serve(search_page, listening)
