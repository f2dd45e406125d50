"""``itmkit extract``: features of a frozen backbone or text model, once, to disk."""

from __future__ import annotations

from collections.abc import Sequence

from jsonargparse import auto_cli

from itmkit.cli.parser import OneLineParser
from itmkit.extraction import extract_to_disk


def extract(words: Sequence[str]) -> None:
    """Run the command with the words after ``itmkit extract``."""
    written = auto_cli(
        extract_to_disk,
        args=list(words),
        as_positional=False,
        parser_class=OneLineParser,
        prog="itmkit extract",
        allow_abbrev=False,
    )
    for path, size in written.items():
        print(f"{path}: {size}")
