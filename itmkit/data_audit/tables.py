"""Tables as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from itmkit.files import write_text


def write_table(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    r"""Write CSV in UTF-8 with the names of the columns, all of it or nothing.

    Strings are quoted: Python 3.11 would leave one with a lone ``\r`` without quotes.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(names)
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerows(rows)
    write_text(path, text.getvalue())
