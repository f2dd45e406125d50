"""A table from disk: CSV, TSV, JSONL or Parquet; and to disk, as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from itmkit.checks import InputError, did_you_mean
from itmkit.files import read_text, user_path, write_text

#: Endings of the tables that can be read.
ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".parquet")
#: Names of columns with the path of an image, the first that is there.
FILE_COLUMNS = ("file_name", "filename", "image", "path")


@dataclass
class Table:
    """The columns of a table.

    Args:
        path: of the file.
        columns: for every column its values, a row each; None where a row has none.
        lines: for every row its line in the file, or its number where the file has no lines.
        unit: what ``lines`` are; empty where they say so themselves.
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: Sequence[int | str]
    unit: str = "line"

    def find(self, option: str, given: str | None, usual: Sequence[str]) -> str | None:
        """The name of a column: the given one, or the first of the usual names that is there.

        Case and white space around a usual name do not matter.

        Args:
            option: name of the argument that ``given`` is from; empty where there is none.
            given: name of the column; None for one of the usual ones.
            usual: names to look for.

        Raises:
            InputError: if the given column is not there.
        """
        if given is not None and given not in self.columns:
            raise InputError(
                f"{option} is {given!r}, but {self.path} has the columns {self.names}"
                f"{did_you_mean(given, self.columns)}"
            )
        known = {name.strip().lower(): name for name in reversed(self.columns)}
        return given or next((known[name] for name in usual if name in known), None)

    def needed(self, option: str, given: str | None, usual: Sequence[str]) -> str:
        """As :meth:`find`, where there must be one.

        Raises:
            InputError: with the columns that there are, if none is found.
        """
        found = self.find(option, given, usual)
        if found is None:
            other = f", or the option {option}" if option else ""
            close = next(filter(None, (did_you_mean(name, usual) for name in self.columns)), "")
            raise InputError(
                f"{self.path} has the columns {self.names}; expected one of "
                f"{', '.join(map(repr, usual))}{other}{self._delimiter_hint() or close}"
            )
        return found

    def at(self, row: int) -> str:
        """A row, for an error.

        Example:
            >>> Table(Path("a.csv"), {}, [2, 3]).at(1)
            'a.csv, line 3'
        """
        return ", ".join((str(self.path), f"{self.unit} {self.lines[row]}".strip()))

    @property
    def names(self) -> str:
        """The names of the columns, for an error."""
        return ", ".join(map(repr, self.columns))

    def _delimiter_hint(self) -> str:
        only = next(iter(self.columns), "")
        found = [mark for mark in ";\t,|" if mark in only and len(self.columns) == 1]
        return f". Is the delimiter {found[0]!r}?" if found else ""


def read_table(
    path: str | Path, *, delimiter: str | None = None, allow_empty: bool = False
) -> Table:
    r"""Read a table.

    Args:
        path: a file of one of the :data:`ENDINGS`. CSV is in UTF-8, its first row names the
            columns, and a cell that holds the delimiter stands in quotes; a ``.txt`` file is CSV.
            JSONL has an object a line.
        delimiter: between the cells of a row; None: a tab in ``.tsv`` and a comma in other files.
        allow_empty: whether a table may have the names of its columns and no rows.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: with the line, if it is not such a table or has no rows.
    """
    path = user_path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        form = ", a table, not captions in Karpathy's or COCO's form" if ending == ".json" else ""
        raise InputError(
            f"{path} ends in {path.suffix!r}; expected one of {', '.join(ENDINGS)}{form}"
        )
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise InputError(f"delimiter is {delimiter!r}; expected one character")
    if delimiter is not None and ending in (".jsonl", ".parquet"):
        raise InputError(f"delimiter is {delimiter!r}, and {path} is no CSV; expected None")
    if ending == ".parquet":
        table = _read_parquet(path)
    elif ending == ".jsonl":
        table = _read_jsonl(path)
    else:
        table = _read_csv(path, delimiter or ("\t" if ending == ".tsv" else ","))
    if not table.lines and not (allow_empty and table.columns):
        raise InputError(f"{path} has no rows; expected one or more below the names of the columns")
    return table


def _read_csv(path: Path, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not names:
                names = cells
            elif len(cells) != len(names):
                raise InputError(
                    f"{path}, line {reader.line_num} has {len(cells)} cells; expected "
                    f"{len(names)}, for the columns {', '.join(map(repr, names))}: a cell that "
                    f"holds {delimiter!r} needs quotes"
                )
            else:
                rows.append(cells)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num} is not CSV: {error}") from error
    if len(set(names)) != len(names):
        raise InputError(f"{path} has the columns {names}; expected each name once")
    columns = zip(*rows, strict=True) if rows else ([] for _ in names)
    return Table(path, dict(zip(names, map(list, columns), strict=True)), lines)


def _read_jsonl(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number} is {line[:40]!r}; expected an object {{…}}")
        rows.append(row)
        lines.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(path, {name: [row.get(name) for row in rows] for name in names}, lines)


def _read_parquet(path: Path) -> Table:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    columns = parquet_columns(path)
    count = len(next(iter(columns.values()), ()))
    return Table(path, columns, range(1, count + 1), "row")


def parquet_columns(path: Path, *, without: str | None = None) -> dict[str, list[Any]]:
    """The columns of a Parquet file; of pictures their paths alone, where it has them.

    Args:
        path: of the file.
        without: column that is left out.

    Raises:
        InputError: if it is not a whole Parquet file.
    """
    from pyarrow import parquet, types

    with parquet_errors(path):
        schema = parquet.read_schema(path)
        pictures = picture_columns(schema)
        wanted = []
        for field in schema:
            if field.name == without:
                continue
            if field.name not in pictures:
                wanted.append(field.name)
            elif types.is_struct(field.type) and any(own.name == "path" for own in field.type):
                wanted.append(f"{field.name}.path")
        columns: dict[str, list[Any]] = parquet.read_table(path, columns=wanted).to_pydict()
    for name in columns.keys() & set(pictures):
        columns[name] = [None if found is None else found.get("path") for found in columns[name]]
    return columns


def picture_columns(schema: Any) -> list[str]:
    """The columns of a schema of pyarrow that hold pictures: their bytes, or ``{bytes, path}``."""
    from pyarrow import types

    def holds_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    found = []
    for field in schema:
        kind = field.type
        if types.is_struct(kind):
            kinds = {child.name: child.type for child in kind}
            kind = kinds.get("bytes", kind) if kinds.keys() <= {"bytes", "path"} else kind
        if holds_bytes(kind):
            found.append(field.name)
    return found


@contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Name the file in an error of reading Parquet.

    Raises:
        InputError: if it is not a whole Parquet file.
    """
    from pyarrow import ArrowException

    try:
        yield
    except ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is not Parquet: {reason}") from error
    except OSError as error:
        if error.errno is not None or error.filename is not None:
            raise
        reason = str(error).partition("\n")[0]  # of pyarrow: what is compressed is not whole
        raise InputError(f"{path} is not Parquet: {reason}") from error


def write_table(path: Path, names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    r"""Write CSV in UTF-8 with the names of the columns, all of it or nothing.

    Strings are quoted: Python 3.11 would leave one with a lone ``\r`` without quotes.
    """
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(names)
    csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC).writerows(rows)
    write_text(path, text.getvalue())
