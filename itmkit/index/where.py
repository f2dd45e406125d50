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
from itmkit.index.columns import number_of

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = ("int", "uint", "float", "double", "halffloat", "bool")
_MOST_BYTES = 1_000_000  # of a value that a condition computes
_TOKENS = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|\[[^]]*\]"""  # text, names in quotes
    r"""|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|\w+|[<>=!]+|\S"""
)
_ORDER = {"<", "<=", ">", ">="}
_COMPARING = {*_ORDER, "=", "==", "<>", "!=", "IS", "IN", "BETWEEN"}
_READING = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION)


class ConditionError(InputError):
    """A condition that is none, or does not fit the columns."""


def matching_rows(items: pa.Table, where: str) -> np.ndarray[Any, Any]:
    """Rows of the items for which an SQL expression over their columns is true.

    Args:
        items: the table.
        where: such as ``year > 2019 AND place LIKE '%beach%'``, in the SQL of SQLite. It reads the
            columns and can do nothing else. A column of text that is compared with a number counts
            as the numbers that are written in it, a text in quotes that is compared with a column
            of numbers as the number in it.

    Returns:
        ``(n,)`` int64, ascending.

    Raises:
        ConditionError: if it is no such expression, names a column that is not there, or compares
            numbers with text that is none.

    Example:
        >>> import pyarrow as pa
        >>> matching_rows(pa.table({"year": [2018, 2020, 2021]}), "year > 2019").tolist()
        [1, 2]
    """
    if not isinstance(where, str):
        raise ConditionError(f"where is {type_of(where)}; expected a condition in SQL")
    words = {word.casefold() for word in re.findall(r"\w+", where)}
    named = [c for c in items.column_names if words & set(re.findall(r"\w+", c.casefold()))]
    plain = {c: str(items.schema.field(c).type) for c in named}
    wide = [c for c, kind in plain.items() if kind != "string" and not kind.startswith(_NUMBERS)]
    columns = [_as_text(items[c]) if c in wide else items[c].to_pylist() for c in named]
    own = max(("itmkit", *items.column_names), key=len) + " row"  # the name of no column
    row, *quoted = ('"' + name.replace('"', '""') + '"' for name in (own, *named))
    numeric = {c: plain[c].startswith(_NUMBERS) for c in named}
    typed = [
        f"{name} {'NUMERIC' if numeric[c] else 'TEXT'}"
        for name, c in zip(quoted, named, strict=True)
    ]
    condition = _numbers_compared(where, numeric)
    not_numbers: list[tuple[str, str]] = []

    def itmkit_number(column: str, value: Any) -> float | None:
        number = number_of(value) if isinstance(value, str) else value
        if number is None and value and value.strip():
            not_numbers.append((column, value))
            raise ValueError
        return number

    with closing(sqlite3.connect(":memory:")) as database:
        database.execute(f"CREATE TABLE items ({', '.join([row, *typed])})")
        database.executemany(
            f"INSERT INTO items VALUES ({', '.join('?' * (len(named) + 1))})",
            zip(range(len(items)), *columns, strict=True),
        )
        database.create_function("itmkit_number", 2, itmkit_number, deterministic=True)
        database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_BYTES)
        database.set_authorizer(_one_select())
        try:
            found = database.execute(f"SELECT {row} FROM items WHERE ({condition})").fetchall()
        except (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError) as error:
            if not_numbers:
                column, text = not_numbers[0]
                cell, name = text.replace("'", "''"), quoted[named.index(column)]
                raise ConditionError(
                    f"where is {where!r}, which compares column {column!r} with a number, and it "
                    f"has {text!r}; expected numbers alone, the number in quotes as text, or "
                    f"what leaves the others out first: {name} <> '{cell}' AND ({where})"
                ) from None
            missing = re.fullmatch(r"no such column: (.*)", str(error))
            hint = did_you_mean(missing[1], items.column_names) if missing else ""
            raise ConditionError(
                f"where is {where!r}: {error}; expected a condition on the columns "
                f"{', '.join(items.column_names)}{hint}"
            ) from error
    rows = {row for (row,) in found} & set(range(len(items)))
    return np.array(sorted(rows), dtype=np.int64)


def _numbers_compared(where: str, numeric: dict[str, bool]) -> str:
    """The condition, with the numbers in columns of text that are compared with numbers.

    SQL holds every text to be greater than every number.

    Raises:
        ConditionError: if it compares a column of numbers with text, or a column twice in a row.
    """
    columns = {name.casefold(): name for name in numeric}
    found = [match for match in _TOKENS.finditer(where) if match[0] not in ("+", "-")]
    tokens = [match[0] for match in found]

    def column_of(token: str) -> str | None:
        name = token[1:-1].replace('""', '"') if token[0] in '"`[' else token
        return columns.get(name.casefold())

    parts, end = [], 0
    for place, match in enumerate(found):
        column = column_of(match[0])
        if column is None:
            continue
        after = [one for one in tokens[place + 1 : place + 5] if one.upper() not in ("NOT", "(")]
        before = tokens[: place - 2 if tokens[:place][-1:] == ["."] else place]
        pairs = [after[:2], before[:-3:-1]]
        others = [pair[1] for pair in pairs if len(pair) > 1 and pair[0].upper() in _COMPARING]
        if all(pair and pair[0] in _ORDER for pair in pairs):
            raise ConditionError(
                f"where is {where!r}, which SQL does not read as a range; expected two conditions, "
                f"such as {match[0]} > 1 AND {match[0]} < 5"
            )
        if numeric[column]:
            texts = [one for one in others if one[0] == "'" and number_of(one[1:-1]) is None]
            if texts:
                raise ConditionError(
                    f"where is {where!r}, and column {column!r} holds numbers, not {texts[0]}; "
                    "expected a number"
                )
        elif any(number_of(one) is not None or numeric.get(column_of(one) or "") for one in others):
            name, start = column.replace("'", "''"), match.start()
            if tokens[:place][-1:] == ["."]:  # items.year
                start = found[max(place - 2, 0)].start()
            parts += [where[end:start], f"itmkit_number('{name}', {where[start : match.end()]})"]
            end = match.end()
    return "".join([*parts, where[end:]])


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
