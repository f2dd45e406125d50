"""The search page in Debian's chromium: typed at, dropped on, with the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from browsers import browser, contrast_faults, opened
from pictures import save_picture

from itmkit.app import SearchPage, create_app, listen
from itmkit.app.server import address_of

pytestmark = pytest.mark.extras
uvicorn = pytest.importorskip("uvicorn", reason="needs itmkit[app]")
pytest.importorskip("starlette", reason="needs itmkit[app]")

DROP = """([name, content]) => {
    const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, { type: "image/jpeg" }));
    for (const kind of ["dragover", "drop"])
        document.body.dispatchEvent(
            new DragEvent(kind, { bubbles: true, cancelable: true, dataTransfer: data }));
}"""


@contextmanager
def served(page: SearchPage) -> Iterator[str]:
    """Its address, while it is served."""
    with listen("127.0.0.1", 0) as listening:
        config = uvicorn.Config(create_app(page), log_level="warning", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield address_of(listening)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def address(search_page: SearchPage) -> Iterator[str]:
    with served(search_page) as address:
        yield address


def are_drawn(tab: Any, count: int) -> None:
    pictures = tab.locator("#hits img")
    pictures.nth(count - 1).wait_for()
    for one in pictures.all():
        one.scroll_into_view_if_needed()
        one.evaluate("(one) => one.decode()")
        assert one.evaluate("(one) => one.naturalWidth") > 0
    assert pictures.count() == count


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_words_and_a_larger_view(chromium: Any, address: str, scheme: str, width: int) -> None:
    with opened(chromium, address, scheme=scheme, width=width) as tab:
        are_drawn(tab, 14)  # before anything is asked for
        tab.get_by_label("Results").select_option("12")
        tab.get_by_label("Words").fill("a red dog")
        tab.keyboard.press("Enter")
        tab.get_by_text("12 pictures, best first").wait_for()
        are_drawn(tab, 12)
        assert contrast_faults(tab) == []
        tab.evaluate("() => document.querySelector('#hits button').click()")
        dialog = tab.get_by_role("dialog")
        assert dialog.get_by_role("img").first.evaluate("(one) => one.decode().then(() => true)")
        assert "a red dog" in dialog.text_content()
        tab.locator("#why-map[src]").wait_for()
        assert contrast_faults(tab) == []
        assert tab.evaluate("() => document.documentElement.scrollWidth") == width
        assert "q=a+red+dog" in tab.url
        tab.reload()
        tab.get_by_text("12 pictures, best first").wait_for()


def test_keyboard_alone(chromium: Any, address: str) -> None:
    with opened(chromium, address, scheme="light", width=1280) as tab:
        are_drawn(tab, 14)
        tab.keyboard.type("a red dog")
        tab.keyboard.press("Enter")
        tab.get_by_text("best first").wait_for()
        names = tab.locator("#hits .name").all_text_contents()
        focused = "() => document.activeElement.title"
        for _ in range(9):  # over the fields to the second picture
            tab.keyboard.press("Tab")
            if tab.evaluate(focused) == names[1]:
                break
        assert tab.evaluate(focused) == names[1]
        tab.keyboard.press("Enter")
        heading = tab.locator("#large-name")
        assert heading.text_content() == names[1]
        tab.keyboard.press("ArrowRight")
        assert heading.text_content() == names[2]
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("ArrowLeft")
        tab.keyboard.press("ArrowLeft")  # there is none before the first
        assert heading.text_content() == names[0]
        tab.keyboard.press("Escape")
        tab.locator("#hits button:focus").and_(tab.get_by_title(names[0])).wait_for()
        assert not tab.get_by_role("dialog").is_visible()


def test_pictures_as_queries(chromium: Any, address: str, tmp_path: Path) -> None:
    import base64

    file = save_picture(tmp_path / "dropped.jpg", "blue")
    with opened(chromium, address, scheme="dark", width=1280) as tab:
        are_drawn(tab, 14)
        tab.evaluate(DROP, ["dropped.jpg", base64.b64encode(file.read_bytes()).decode()])
        tab.get_by_text("Pictures like dropped.jpg").wait_for()
        tab.get_by_text("best first").wait_for()
        assert contrast_faults(tab) == []
        tab.get_by_role("button", name="Remove").click()
        tab.get_by_text("the first by path").wait_for()
        tab.locator("#file").set_input_files(file)
        tab.get_by_text("best first").wait_for()
        tab.locator("#hits button").nth(3).click()
        name = tab.locator("#large-name").text_content()
        tab.get_by_role("button", name="Pictures like this one").click()
        tab.get_by_text(f"Pictures like {name}").wait_for()
        tab.locator("#hits button").first.and_(tab.get_by_title(name)).wait_for()  # itself


def test_filters_and_the_way_back(chromium: Any, address: str) -> None:
    with opened(chromium, address, scheme="dark", width=390) as tab:
        are_drawn(tab, 14)
        tab.get_by_label("Filter").fill("objects = 2")
        tab.keyboard.press("Enter")
        tab.get_by_text("4 pictures, the first by path").wait_for()
        tab.go_back()
        tab.get_by_text("14 pictures, the first by path").wait_for()
        assert tab.get_by_label("Filter").input_value() == ""
        tab.get_by_label("Filter").fill("objects = 9")
        tab.keyboard.press("Enter")
        tab.get_by_text("No picture matches the filter.").wait_for()


def test_error_lines(chromium: Any, address: str, tmp_path: Path) -> None:
    """Errors of a query stand on the page; the browser lists a status of 400 as a fault itself."""
    (tmp_path / "text.jpg").write_text("no picture")
    page = chromium.new_context(viewport={"width": 390, "height": 800}).new_page()
    page.goto(f"{address}?where=yaer")
    page.get_by_role("alert").get_by_text("no such column: yaer").wait_for()
    page.get_by_label("Filter").fill("")
    page.locator("#file").set_input_files(tmp_path / "text.jpg")
    page.get_by_role("alert").get_by_text("picture is not a readable image").wait_for()
    assert page.locator("#hits li").count() == 0
    assert page.evaluate("() => document.documentElement.scrollWidth") == 390
    assert contrast_faults(page) == []
    page.context.close()
