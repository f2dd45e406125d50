from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from doc_pages import PAGES

import itmkit
from itmkit.cli import main

ROOT = Path(__file__).parents[1]


def test_version_stands_in_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", itmkit.__version__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" in project["dynamic"]
    try:
        assert version("itmkit") == itmkit.__version__
    except PackageNotFoundError:
        pytest.skip("itmkit is not installed here")


def test_version_and_help_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    assert capsys.readouterr().out == f"itmkit {itmkit.__version__}\n"
    main([])
    usage = capsys.readouterr().out
    assert all(command in usage for command in ("fit", "validate", "test", "predict", "extract"))


def test_every_import_is_a_dependency() -> None:
    """What the package imports from others is declared, and what is declared is imported."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[\[<>=]", entry)[0] for entry in project["dependencies"]}
    imports = re.compile(r"^\s*(?:from|import) (\w+)", re.MULTILINE)
    source = "\n".join(path.read_text() for path in (ROOT / "itmkit").rglob("*.py"))
    known = {"pillow": "PIL", "pyyaml": "yaml"}
    unused = {name for name in declared if known.get(name, name) not in imports.findall(source)}
    # loggers that Lightning imports for us
    assert unused == {"tensorboard", "wandb"}


def anchors(page: Path) -> set[str]:
    """What the headings of a page are linked by, on the site and on GitHub."""
    titles = re.findall(r"^#{1,3} (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if "://" not in target:
            place = page.parent / target if target else page
            assert place.exists(), target
            assert not anchor or anchor in anchors(place), f"{target}#{anchor}"


@pytest.mark.parametrize("name", ["docs/reliability.md", "docs/security.md"])
def test_tests_of_promises_are_there(name: str) -> None:
    found = re.findall(r"`(?:tests/)?(\w+/)?(test_\w+\.py)", PAGES[name].read_text())
    assert len(found) > 10
    for folder, file in found:
        assert (ROOT / "tests" / (folder or "data/") / file).is_file(), folder + file


def test_headings_that_are_promised_are_in_the_changelog() -> None:
    promised = re.findall(r"under \*([^*]+)\*", PAGES["docs/deprecation.md"].read_text())
    changelog = PAGES["CHANGELOG.md"].read_text()
    assert promised
    assert all(f"\n### {name}\n" in changelog for name in promised)


def web_links(name: str) -> set[str]:
    """The web addresses of a page, without those of examples on this machine."""
    found = re.findall(
        r"https?://[^\s`\"'<>]+?(?=[).,;:]*(?:[\s`\"'<>]|$))", PAGES[name].read_text()
    )
    return {link for link in found if urlsplit(link).hostname != "127.0.0.1"}


@pytest.mark.parametrize("name", PAGES)
def test_web_links_are_addresses(name: str) -> None:
    for link in web_links(name):
        parts = urlsplit(link)
        assert parts.scheme == "https", link
        assert re.fullmatch(r"([\w-]+\.)+[a-z]{2,}", parts.netloc), link
        assert re.fullmatch(r"[\w./~%+-]*", parts.path), link


def test_make_links_asks_every_web_link() -> None:
    """What is not on the site (``README.md`` and others beside it) links to nothing else."""
    site = {name for name in PAGES if name.startswith("docs/")} | {"CHANGELOG.md"}
    asked = set().union(*map(web_links, site))
    assert len(asked) > 10
    assert set().union(*map(web_links, PAGES)) == asked
