"""Tutorials: jupytext scripts that Sphinx runs, cell by cell, and shows with what they print.

A script ``NAME.py`` in this folder is in the percent format: ``# %% [markdown]`` starts text,
``# %%`` Python, ``# %% language="bash"`` commands. Its cells run in one process and one new folder;
the page shows the last lines of what each prints, and the pictures that text refers to.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

FOLDER = Path(__file__).parent
MADE = "made"  # folder in here for the pages
LINES = 24  # shown of what a cell prints
_BASH = "%%bash\n"
_IMAGE = re.compile(r"!\[[^\]]*\]\(([^):]+)\)")
_PROGRESS = re.compile(r"\r|\x1b|it/s|it\?/s|\?it")
# Lightning's table of the parts of a model, and the lines below it
_SUMMARY = re.compile(r"[┏┃┡│└]|(Trainable|Non-trainable|Total) |Modules in ")
_MARK = "\x1e"  # stands between what two cells print
_LINK = re.compile(r"\(((?:\.\./)*tutorials/)(\w+)\.py\)")
_UNIT = re.compile(r"(?<=[±≥≤]) |(?<=\d) (?=(?:%|s|ms|µs|MB|GB|GiB)(?!\w))")


def build_tutorials(app: Sphinx) -> None:
    """Write a page for each script whose page is missing or older than it."""
    for script in sorted(FOLDER.glob("[a-z]*.py")):
        page = FOLDER / MADE / f"{script.stem}.md"
        if script.name == "extension.py":
            continue
        if not page.exists() or page.stat().st_mtime < script.stat().st_mtime:
            logging.getLogger(__name__).info("running tutorial %s", script.name)
            page.parent.mkdir(exist_ok=True)
            page.write_text(page_of(script), encoding="utf-8")


def page_of(script: Path) -> str:
    """Run a tutorial; its page as MyST, with pictures copied beside it.

    Args:
        script: in the percent format of jupytext.

    Raises:
        RuntimeError: a cell fails; with what it wrote.
    """
    cells = jupytext.read(script).cells
    with tempfile.TemporaryDirectory() as folder:
        outputs = iter(_run([cell.source for cell in cells if cell.cell_type == "code"], folder))
        parts = []
        for cell in cells:
            if cell.cell_type != "code":
                for name in _IMAGE.findall(cell.source):
                    made = FOLDER / MADE / f"{script.stem}-{name}"
                    shutil.copyfile(Path(folder) / name, made)
                    cell.source = cell.source.replace(f"({name})", f"({made.name})")
                parts.append(cell.source)
                continue
            language = "bash" if cell.source.startswith(_BASH) else "python"
            parts.append(f"```{language}\n{cell.source.removeprefix(_BASH)}\n```")
            if told := next(outputs):
                parts.append(f"```text\n{told}\n```")
    source = f"*Made by [{script.name}](../{script.name}), which `make docs` runs.*"
    return "\n\n".join([*parts, source]) + "\n"


def _run(sources: list[str], folder: str) -> list[str]:
    """What each cell prints, run in one process."""
    program = "import subprocess\n"
    for source in sources:
        if source.startswith(_BASH):
            words = ["bash", "-euo", "pipefail", "-c", source.removeprefix(_BASH)]
            program += f"subprocess.run({words!r}, check=True)\n"
        else:
            program += f"{source}\n"
        program += f"print({_MARK!r}, flush=True)\n"
    root = str(FOLDER.parents[1])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", program],  # no file that processes of it would run again
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths, "PATH": search, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"a tutorial failed:\n{done.stdout}\n{done.stderr}")
    told = done.stdout.replace(f"{Path(folder).resolve()}/", "")
    return [_shown(one) for one in told.split(f"{_MARK}\n")]


def _shown(told: str) -> str:
    # Of a progress bar and of the summary of a model nothing is left.
    lines = [
        line for line in told.split("\n") if not _PROGRESS.search(line) and not _SUMMARY.match(line)
    ]
    lines = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n").splitlines()
    return "\n".join(lines if len(lines) <= LINES else ["…", *lines[-LINES:]])


def link_tutorials(app: Sphinx, name: str, source: list[str]) -> None:
    """Pages link to the script of a tutorial, which is in the repository; here to its page."""
    source[0] = _LINK.sub(rf"(\g<1>{MADE}/\g<2>.md)", source[0])


def keep_numbers_whole(app: Sphinx, doctree: nodes.document) -> None:
    """In a table, a number is not parted from its unit."""
    for cell in doctree.findall(nodes.entry):
        for text in list(cell.findall(nodes.Text)):
            text.parent.replace(text, nodes.Text(_UNIT.sub("\u00a0", text)))


def link_sources(app: Sphinx, doctree: nodes.document) -> None:
    """Nothing is linked to that the site lacks: files of the repository are shown by their path."""
    for node in list(doctree.findall(nodes.reference)):
        target = str(node.get("refuri", ""))
        if target.startswith("../"):
            node.replace_self(nodes.literal("", node.astext()))


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", build_tutorials)
    app.connect("source-read", link_tutorials)
    app.connect("doctree-read", keep_numbers_whole)
    app.connect("doctree-read", link_sources)
    return {"parallel_read_safe": True}
