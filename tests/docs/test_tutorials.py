"""Tutorials are run cell by cell, and their pages show what the cells print."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from doc_pages import ROOT

SCRIPT = """\
# %% [markdown]
# # A page
# Words.

# %%
number = 3
print("number", number)

# %% language="bash"
# echo of a shell > said.svg; cat said.svg

# %% [markdown]
# ![what was made](said.svg)

# %%
print(*range(number * 20), sep="\\n")
"""


@pytest.fixture
def extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("jupytext")
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(ROOT / "docs")
    module = import_module("tutorials.extension")
    (tmp_path / module.MADE).mkdir()
    monkeypatch.setattr(module, "FOLDER", tmp_path)
    return module


@pytest.mark.extras
def test_page_of_a_script(extension: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "words.py"
    script.write_text(SCRIPT)
    page = extension.page_of(script)
    assert page.startswith("# A page\nWords.\n\n```python\nnumber = 3\n")
    assert "```text\nnumber 3\n```" in page
    assert "```bash\necho of a shell > said.svg; cat said.svg\n```" in page
    assert "![what was made](words-said.svg)" in page
    assert (tmp_path / extension.MADE / "words-said.svg").read_text() == "of a shell\n"
    assert "```text\n…\n36\n" in page  # the last 24 of 60 lines


@pytest.mark.extras
def test_error_of_a_cell_that_fails(extension: ModuleType, tmp_path: Path) -> None:
    script = tmp_path / "wrong.py"
    script.write_text("# %%\nprint(missing_name)\n")
    with pytest.raises(RuntimeError, match="missing_name"):
        extension.page_of(script)


def test_every_tutorial_is_on_the_start_page() -> None:
    index = (ROOT / "docs/index.md").read_text()
    scripts = {path.stem for path in (ROOT / "docs/tutorials").glob("*.py")} - {"extension"}
    assert scripts
    assert all(f"\ntutorials/made/{name}\n" in index for name in scripts)


def test_every_page_is_on_the_start_page() -> None:
    index = (ROOT / "docs/index.md").read_text()
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"}
    assert [name for name in sorted(pages) if f"\n{name}\n" not in index] == []
