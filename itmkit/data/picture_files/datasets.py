"""Pictures of the library ``datasets``."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from itmkit.checks import InputError
from itmkit.data.images import BadSampleError
from itmkit.data.picture_files.base import NAME_COLUMN, PictureFile, given_names, name_inside
from itmkit.data.picture_files.parquet import picture_column
from itmkit.data.table import Table
from itmkit.extras import require_extra


class DatasetPictures(PictureFile):
    """Pictures of a map-style dataset of the library ``datasets``; the extra ``datasets`` has it.

    Args:
        dataset: with a column of pictures.
        column: of the pictures; None: the only one, or ``image`` or ``picture``.
        path: what stands for it in errors.

    Raises:
        InputError: if the library is not installed, or as of :func:`open_pictures`.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        column: str | None = None,
        path: str | Path = "dataset",
    ) -> None:
        require_extra("datasets", "datasets>=4")
        from datasets import Image

        self.path = Path(path)
        column = picture_column(dataset.features.arrow_schema, column, self.path)
        if isinstance(dataset.features[column], Image):
            dataset = dataset.cast_column(column, Image(decode=False))
        arrow = dataset.with_format("arrow")
        self._pictures, self._column = arrow.select_columns([column]), column
        self._mapped: Any = None
        beside = arrow.remove_columns([column])
        columns = beside[:].to_pydict() if beside.column_names else {}
        paths = self._paths(dataset)
        given = given_names(columns, len(dataset))
        rows: dict[str, list[int]] = {}  # of every name
        names: list[str] = []
        for row in range(len(dataset)):
            name = name_inside(given[row] or paths[row], f"{self.path}, row {row + 1}")
            name = name or f"{row:08d}"
            names.append(name)
            rows.setdefault(name, []).append(row)
        if not names:
            raise InputError(f"{self.path} has no rows; expected one or more")
        for name, own in rows.items():
            # of equal length: to compare them all at every start would take minutes
            sizes = self._sizes(own) if len(own) > 1 else [0]
            other = next((row for row, size in zip(own, sizes, strict=True) if size != sizes[0]), 0)
            if other:
                raise InputError(
                    f"{self.path}, row {other + 1} has another picture {name!r} than row "
                    f"{own[0] + 1}; expected each name once"
                )
        self.names, self._rows = list(rows), [own[0] for own in rows.values()]
        lines = [f"row {row + 1}" for row in range(len(names))]
        self.table = Table(self.path, {**columns, NAME_COLUMN: names}, lines, unit="")

    _on_disk = False  # whether its rows are in the file in their order

    @classmethod
    def from_disk(
        cls, paths: Sequence[Path], split: str, *, column: str | None = None, path: Path
    ) -> DatasetPictures:
        """Of a folder that ``save_to_disk`` wrote, or of ``.arrow`` files."""
        require_extra("datasets", "datasets>=4")
        import datasets

        opened = []
        for own in paths:
            try:
                dataset = (
                    datasets.load_from_disk(str(own))
                    if own.is_dir()
                    else datasets.Dataset.from_file(str(own))
                )
                dataset.data.validate(full=True)  # reads no pictures, but where they are
            except FileNotFoundError:
                raise
            except Exception as error:  # a file that is not whole raises nearly anything
                reason = str(error).partition("\n")[0]
                raise InputError(f"{own} is not a whole dataset: {reason}") from error
            opened.append(dataset)
        whole = opened[0] if len(opened) == 1 else datasets.concatenate_datasets(opened)
        found = cls(whole, column=column, path=path)
        found._on_disk = True
        return found

    def _paths(self, dataset: Any) -> list[str | None]:
        path = f"{self._column}.path"
        flat = dataset.select_columns([self._column]).flatten()
        if path not in flat.column_names:
            return [None] * len(dataset)
        found: list[str | None] = flat.with_format("arrow")[path][:].to_pylist()
        return found

    def _sizes(self, rows: list[int]) -> list[int]:
        return [len(content) for _, content in map(self._find, rows)]

    def _find(self, row: int) -> tuple[str | None, bytes]:
        if self._on_disk and self._mapped is None:
            self._mapped = self._pictures[:].column(self._column)  # without a copy
        if self._mapped is not None:
            found = self._mapped[row].as_py()
        else:  # rows may be in another order than in memory, where all would be copied
            found = self._pictures[row].column(self._column)[0].as_py()
        name, content = (found["path"], found["bytes"]) if isinstance(found, dict) else ("", found)
        if not content and name and Path(name).is_file():  # of a dataset made of paths
            content = Path(name).read_bytes()
        return name, content or b""

    def read(self, row: int) -> bytes:
        name, content = self._find(self._rows[row])
        if not content:
            path = f" but the path {name!r}" if name else ""
            raise BadSampleError(f"{self.path}, {self.names[row]!r} has no bytes{path}")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}

    def state(self, row: int) -> str:
        return blake2b(self.read(row), digest_size=16).hexdigest()
