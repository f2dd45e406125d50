"""Pages in Debian's chromium, by Playwright; a visible skip where one of them is not there."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs chromium")
    with api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def opened(chromium: Any, page: Path | str, *, scheme: str, width: int) -> Iterator[Any]:
    """A page in a tab: as wide as the window, and without a fault at its end.

    Args:
        chromium: the browser.
        page: a file, in a tab without a network, or an address, beyond which nothing is asked for.
        scheme: ``"light"`` or ``"dark"``.
        width: of the window.
    """
    faults: list[str] = []
    address = page.as_uri() if isinstance(page, Path) else page
    context = chromium.new_context(
        color_scheme=scheme,
        viewport={"width": width, "height": 800},
        offline=isinstance(page, Path),
        reduced_motion="reduce",
    )
    tab = context.new_page()
    own = (address, "data:", f"blob:{address}")

    def check_request(request: Any) -> None:
        if not request.url.startswith(own):
            faults.append(f"asks for {request.url[:80]}")

    def check_failed(request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # by the page itself, which asks anew
            faults.append(f"{request.url[:80]}: {request.failure}")

    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("request", check_request)
    tab.on("requestfailed", check_failed)
    tab.goto(address)
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    yield tab
    context.close()
    assert faults == []


def contrast_faults(tab: Any) -> list[str]:
    """What axe finds fault with, contrast and all else; nothing where axe is not installed."""
    try:
        from axe_playwright_python.sync_playwright import Axe
    except ImportError:
        return []
    return [one["id"] for one in Axe().run(tab).response["violations"]]
