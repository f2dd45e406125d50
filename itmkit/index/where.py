"""Conditions on the columns of an index, in SQL that can do nothing but read them."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from itmkit.checks import InputError, did_you_mean, type_of

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = ("int", "uint", "float", "double", "halffloat", "bool")
_MOST_BYTES = 1_000_000  # of a value that a condition computes
_READING = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)


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


def _as_text(column: pa.ChunkedArray) -> list[Any]:
    """Values that SQL does not know, such as times and lists, as text; lists and bytes as JSON."""
    import pyarrow as pa

    kind, types = column.type, pa.types
    in_bytes = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    if not (types.is_nested(kind) or any(one(kind) for one in in_bytes)):
        return list(column.cast("string").to_pylist())
    return [
        None if value is None else json.dumps(value, ensure_ascii=False, default=str)
        for value in column.to_pylist()
    ]


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
