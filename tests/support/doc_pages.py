"""The pages of the documentation, and what is in their blocks."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))
    if not {"_build", "made"} & set(path.parts)
}
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SHELL = ("", "bash", "sh", "console")
#: what a shell reads as the end of a command
_ENDS = {"&&", "||", "|", ";", "&", ">", ">>", "<", "2>"}


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of some languages."""
    return [text for language, text in _BLOCK.findall(page.read_text()) if language in languages]


def commands(page: Path) -> list[list[str]]:
    """The words behind ``itmkit`` of each command that a page shows."""
    lines = "\n".join(blocks(page, *_SHELL)).replace("\\\n", " ").splitlines()
    return [words for line in lines for words in _commands(line)]


def configuration_commands(path: Path) -> list[list[str]]:
    """The same of the comment of a configuration."""
    comment = "".join(
        f"{line.lstrip('# ')}\n" for line in path.read_text().splitlines() if line.startswith("#")
    )
    lines = comment.replace("\\\n", " ").splitlines()
    return [words for line in lines if line.startswith("itmkit ") for words in _commands(line)]


def _commands(line: str) -> Iterator[list[str]]:
    try:
        reader = shlex.shlex(line, posix=True, punctuation_chars=True)
        reader.whitespace_split = True
        words = list(reader)
    except ValueError:  # a drawing, not a command
        return
    while "itmkit" in words:
        words = words[words.index("itmkit") + 1 :]
        end = next((at for at, word in enumerate(words) if word in _ENDS), len(words))
        if end and "…" not in words[:end]:  # which stands for the rest
            yield words[:end]
        words = words[end:]
