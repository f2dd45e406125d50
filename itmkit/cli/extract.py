"""``itmkit extract``: features of a frozen backbone or text model, once, to disk."""

from __future__ import annotations

from collections.abc import Sequence

from itmkit.cli.parser import call
from itmkit.extraction import extract_to_disk


def extract(words: Sequence[str]) -> None:
    """Run the command with the words after ``itmkit extract``."""
    for path, size in call(extract_to_disk, words, "extract", as_positional=False).items():
        print(f"{path}: {size}")
