"""``itmkit app``, as typed."""

from __future__ import annotations

import re
from typing import Any

import pytest

from itmkit.app import SearchPage
from itmkit.app import server as server_module
from itmkit.cli import main

pytestmark = pytest.mark.extras
pytest.importorskip("starlette", reason="needs itmkit[app]")
uvicorn = pytest.importorskip("uvicorn", reason="needs itmkit[app]")


def test_it_says_where_it_is_and_that_it_ends(
    search_page: SearchPage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: Any, sockets: list[Any]) -> None:
        assert sockets[0].getsockname()[1] > 0
        raise KeyboardInterrupt  # as uvicorn does at its end

    monkeypatch.setattr(uvicorn.Server, "run", run)
    main(["app", str(search_page.index.folder), "--port=0", "--device=cpu"])
    first, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"14 pictures: http://127\.0\.0\.1:\d+/ \(Ctrl-C ends\)", first)
    assert last == "app: ended"


def test_a_port_that_is_taken_is_refused_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with server_module.listen("127.0.0.1", 0) as taken, pytest.raises(SystemExit):
        main(["app", "no such index", f"--port={taken.getsockname()[1]}"])
    assert "Address already in use; expected an address" in capsys.readouterr().err


def test_no_index(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["app", "nothing", "--port=0"])
    assert "index is 'nothing': neither an index nor a run with one" in capsys.readouterr().err
