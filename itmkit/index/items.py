"""The pictures of a folder, and what is known of them: path, size, time, hash, own columns."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from itmkit.checks import InputError, did_you_mean, type_of
from itmkit.data.captioned_folder import FILE_COLUMNS
from itmkit.data.table import read_table

if TYPE_CHECKING:
    import pyarrow as pa

#: columns of every index; those of the user stand beside them
OWN_COLUMNS = ("path", "size", "mtime", "hash")

_NUMBERS = ("int", "uint", "float", "double", "halffloat", "bool")
_MOST_BYTES = 1_000_000  # of a value that a condition computes
_READING = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)


class FileState(NamedTuple):
    """Size in bytes and time of change in nanoseconds: while both stay, a file is unchanged."""

    size: int
    mtime: int


def check_columns(names: Sequence[str], columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse columns that do not fit the pictures, before these are encoded.

    Raises:
        InputError: if they are of none of the pictures, or cannot be stored.
    """
    column_arrays(names, columns)
    given = next(iter(columns.values()), {})
    if given and not any(name in own for own in columns.values() for name in names):
        raise InputError(
            f"columns are of pictures such as {next(iter(given))!r}, and none of these is there; "
            f"expected paths such as {names[0]!r}"
        )


def file_states(root: Path, names: Iterable[str]) -> dict[str, FileState]:
    """The state of every file by its name; files that have gone meanwhile are left out.

    Of a link that leads nowhere it is the state of the link.
    """
    states = {}
    for name in names:
        try:
            found = os.stat(root / name)
        except OSError:
            try:
                found = os.lstat(root / name)
            except FileNotFoundError:
                continue
        states[name] = FileState(found.st_size, found.st_mtime_ns)
    return states


def file_hash(path: Path) -> str:
    """Hash of a file's content, 32 hexadecimal digits."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def items_table(
    names: Sequence[str],
    states: Mapping[str, FileState],
    hashes: Mapping[str, str],
    columns: Mapping[str, Mapping[str, Any]],
) -> pa.Table:
    """One row a picture.

    Args:
        names: paths relative to the folder, in the order of the vectors.
        states: of every name.
        hashes: of every name.
        columns: the user's own, each from name to value; null where a name has none.

    Raises:
        InputError: if a column of the user has the name of one of ours, or mixed types.
    """
    import pyarrow as pa

    content: dict[str, Any] = {
        "path": pa.array(names, pa.string()),
        "size": pa.array([states[name].size for name in names], pa.int64()),
        "mtime": pa.array([states[name].mtime for name in names], pa.int64()),
        "hash": pa.array([hashes[name] for name in names], pa.string()),
    }
    return pa.table(content | column_arrays(names, columns))


def column_arrays(
    names: Sequence[str], columns: Mapping[str, Mapping[str, Any]]
) -> dict[str, pa.Array]:
    """The user's own columns, a value for every name.

    Raises:
        InputError: if a column has the name of another one, or values of several types.
    """
    import pyarrow as pa

    seen: dict[str, str] = {}
    for column in columns:  # SQL knows no case
        if column.lower() in OWN_COLUMNS:
            raise InputError(f"column {column!r} is one of {', '.join(OWN_COLUMNS)}; rename it")
        other = seen.setdefault(column.lower(), column)
        if other != column:
            raise InputError(f"columns {other!r} and {column!r} differ in case alone; rename one")
    content = {}
    for column, values in columns.items():
        try:
            content[column] = pa.array([values.get(name) for name in names])
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"column {column!r} has values of several types: {error}") from error
        except (OverflowError, UnicodeEncodeError) as error:
            raise InputError(
                f"column {column!r} has a value that cannot be stored: {error}; expected numbers "
                "of at most 64 bits and text in UTF-8"
            ) from error
    return content


def own_columns(items: pa.Table) -> dict[str, dict[str, Any]]:
    """The user's own columns of an index, each from the path of a picture to its value."""
    paths = items["path"].to_pylist()
    return {
        name: dict(zip(paths, items[name].to_pylist(), strict=True))
        for name in items.column_names
        if name not in OWN_COLUMNS
    }


def picture_columns(table: str | Path) -> dict[str, dict[str, Any]]:
    """The columns of a table, each from the picture of a row to its value.

    Where a picture has several rows, the first one counts. Cells of a CSV file become numbers where
    all of a column are.

    Args:
        table: CSV, TSV, JSONL or Parquet, with the pictures in the column ``file_name``,
            ``filename``, ``image`` or ``path``.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if it is not such a table.
    """
    content = read_table(table)
    own = content.needed("", None, FILE_COLUMNS)
    names = [str(name) for name in content.columns[own]]
    columns = {}
    for column, values in content.columns.items():
        if column != own:
            by_name: dict[str, Any] = {}
            for name, value in zip(names, _numbers(values), strict=True):
                by_name.setdefault(name, value)
            columns[column] = by_name
    return columns


def _numbers(values: list[Any]) -> list[Any]:
    """Strings as whole numbers or floats where all of them are; empty ones are missing."""
    if not all(value is None or isinstance(value, str) for value in values):
        return values
    given = [value for value in values if value]
    for kind in (int, float):
        try:
            found = [kind(value) for value in given]
        except ValueError:
            continue
        numbers = iter(found)
        return [next(numbers) if value else None for value in values]
    return [value or None for value in values]


def _as_text(column: Any) -> list[Any]:
    """Values that SQL does not know, such as times and lists, as text; of lists as JSON."""
    import pyarrow as pa

    try:
        texts: list[Any] = column.cast("string").to_pylist()
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        values = column.to_pylist()
        texts = [
            None if value is None else json.dumps(value, ensure_ascii=False, default=str)
            for value in values
        ]
    return texts


def _one_select() -> Callable[..., int]:
    """Lets a statement read the items, once: a second SELECT could take for ever."""
    selects = 0

    def allowed(action: int, table: str | None, *_: str | None) -> int:
        nonlocal selects
        selects += action == sqlite3.SQLITE_SELECT
        reads_other = action == sqlite3.SQLITE_READ and table != "items"
        fits = action in _READING and selects <= 1 and not reads_other
        return sqlite3.SQLITE_OK if fits else sqlite3.SQLITE_DENY

    return allowed


def matching_rows(items: pa.Table, where: str) -> np.ndarray[Any, Any]:
    """Rows of the items for which an SQL expression over their columns is true.

    Args:
        items: the table.
        where: such as ``year > 2019 AND place LIKE '%beach%'``, in the SQL of SQLite. It reads the
            columns and can do nothing else.

    Returns:
        ``(n,)`` int64, ascending.

    Raises:
        InputError: if it is no such expression, or names a column that is not there.

    Example:
        >>> import pyarrow as pa
        >>> matching_rows(pa.table({"year": [2018, 2020, 2021]}), "year > 2019").tolist()
        [1, 2]
    """
    if not isinstance(where, str):
        raise InputError(f"where is {type_of(where)}; expected a condition in SQL")
    words = {word.casefold() for word in re.findall(r"\w+", where)}
    named = [c for c in items.column_names if words & set(re.findall(r"\w+", c.casefold()))]
    plain = {c: str(items.schema.field(c).type) for c in named}
    wide = [c for c, kind in plain.items() if kind != "string" and not kind.startswith(_NUMBERS)]
    columns = [_as_text(items[c]) if c in wide else items[c].to_pylist() for c in named]
    own = max(("itmkit", *items.column_names), key=len) + " row"  # the name of no column
    row, *quoted = ('"' + name.replace('"', '""') + '"' for name in (own, *named))
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"CREATE TABLE items ({', '.join([row, *quoted])})")
        database.executemany(
            f"INSERT INTO items VALUES ({', '.join('?' * (len(named) + 1))})",
            zip(range(len(items)), *columns, strict=True),
        )
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
        database.set_authorizer(_one_select())
        try:
            found = database.execute(f"SELECT {row} FROM items WHERE ({where})").fetchall()
        except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
            missing = re.fullmatch(r"no such column: (.*)", str(error))
            hint = did_you_mean(missing[1], items.column_names) if missing else ""
            raise InputError(
                f"where is {where!r}: {error}; expected a condition on the columns "
                f"{', '.join(items.column_names)}{hint}"
            ) from error
    rows = {row for (row,) in found} & set(range(len(items)))
    return np.array(sorted(rows), dtype=np.int64)
