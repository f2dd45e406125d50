"""The user's own columns of an index: years, places, whatever a table has of a picture."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import isfinite, nan
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from itmkit.checks import InputError
from itmkit.data.captions import plain_name
from itmkit.data.table import FILE_COLUMNS, read_table

if TYPE_CHECKING:
    import pyarrow as pa

#: columns of every index; those of the user stand beside them
OWN_COLUMNS = ("path", "size", "mtime", "hash")

# as people write numbers: Python also reads "1_000", "nan" and "inf"
_WHOLE = re.compile(r"\s*[+-]?[0-9]+\s*")
_DECIMAL = re.compile(r"\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*")


def check_columns(names: Sequence[str], columns: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse columns that do not fit the pictures, before these are encoded.

    Raises:
        InputError: if they are of none of the pictures, or cannot be stored.
    """
    column_arrays(names, columns)
    given = next(iter(columns.values()), {})
    known = {_plain(path) for own in columns.values() for path in own}
    if given and known.isdisjoint(map(_plain, names)):
        raise InputError(
            f"columns are of pictures such as {next(iter(given))!r}, and none of these is there; "
            f"expected paths such as {names[0]!r}"
        )


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
            content[column] = pa.array(list(_values_of(names, values)))
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(f"column {column!r} has values of several types: {error}") from error
        except (OverflowError, UnicodeEncodeError) as error:
            raise InputError(
                f"column {column!r} has a value that cannot be stored: {error}; expected numbers "
                "of at most 64 bits and text in UTF-8"
            ) from error
    return content


def _values_of(names: Sequence[str], values: Mapping[str, Any]) -> Iterator[Any]:
    """The value of every picture; None where a table has none."""
    plain = {_plain(path): value for path, value in values.items()}
    return (values[name] if name in values else plain.get(_plain(name)) for name in names)


def _plain(path: str) -> str:
    """A path as paths are compared: ``./a.jpg`` is ``a.jpg``, and accents are one character."""
    return str(PurePosixPath(plain_name(path)))


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
    all of a column are written as such: ``12``, ``-0.5``, ``1e3``; not ``1_000``, ``nan``, ``inf``
    or whole numbers of more than 64 bits.

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


def number_of(text: str) -> float | None:
    """The number that is written as ``12``, ``-0.5`` or ``1e3``; None where it is another text."""
    if _WHOLE.fullmatch(text):
        return int(text) if len(text) < 99 and abs(int(text)) < 2**63 else None
    number = float(text) if _DECIMAL.fullmatch(text) else nan
    return number if isfinite(number) else None


def _numbers(values: list[Any]) -> list[Any]:
    """Strings as whole numbers or floats where all of them are; empty ones are missing."""
    if not all(value is None or isinstance(value, str) for value in values):
        return values
    given = [value for value in values if value]
    numbers = [number for value in given if (number := number_of(value)) is not None]
    if len(numbers) < len(given):
        filled: Iterator[Any] = iter(given)
    elif all(isinstance(number, int) for number in numbers):
        filled = iter(numbers)
    else:
        filled = map(float, numbers)
    return [next(filled) if value else None for value in values]
