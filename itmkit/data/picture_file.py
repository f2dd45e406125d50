"""Pictures inside files, by row: tar, Parquet, and datasets of the library ``datasets``."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from hashlib import blake2b, sha256
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from itmkit.checks import InputError, did_you_mean
from itmkit.data.captions import check_name, split_names
from itmkit.data.images import BadSampleError
from itmkit.data.photo import SUFFIXES
from itmkit.data.table import (
    FILE_COLUMNS,
    Table,
    parquet_columns,
    parquet_errors,
    picture_columns,
)
from itmkit.extras import require_extra
from itmkit.files import atomic_write, default_cache, file_state, fill_once, user_path

#: Endings of files that hold pictures.
ENDINGS = (".tar", ".parquet", ".arrow")

_NAME = "file_name"  # column of a table with the names of its pictures
_VERSION = "1"  # of what is in the cache
_USUAL = ("image", "picture")  # columns of pictures, where there are several
_SPLITS = ("train", "val", "validation", "valid", "dev", "test")


class PictureFile(ABC):
    """Pictures inside files, still encoded (JPEG, PNG …), with what stands beside them.

    Attributes:
        path: of the file, or of the folder of files; for errors.
        names: one a picture, each once.
        table: what stands beside the pictures, such as captions; its column ``file_name`` has the
            names. Of a picture there may be several rows.
        of_split: whether all of it is of the split that was asked for.
    """

    path: Path
    names: Sequence[str]
    table: Table
    of_split = False

    @abstractmethod
    def read(self, row: int) -> bytes:
        """A picture, as it is in the file.

        Raises:
            BadSampleError: if this one cannot be read.
            InputError: if the file is not the one that was opened.
        """

    @abstractmethod
    def state(self, row: int) -> str:
        """What changes when a picture does."""

    def __len__(self) -> int:
        return len(self.names)


def open_pictures(
    photos: str | Path, split: str, *, column: str | None = None
) -> PictureFile | None:
    """Open files that hold pictures; None for a folder of photos.

    ===============================  ==============================================================
    ``photos.tar``                   files ``KEY.jpg``, with captions in ``KEY.txt`` (a line each)
                                     or in the fields of ``KEY.json``, as webdataset has it
    ``photos.parquet``               a column of pictures: of ``{bytes, path}``, as Hugging Face
                                     writes it, or of bytes
    a folder of ``save_to_disk``     of the library ``datasets``, of one split or of several; or
                                     one of its ``.arrow`` files
    a folder of such files           those whose name starts with that of the split, such as
                                     ``train-00000-of-00002.parquet``, or all
    ``data/{split}-*.parquet``       files by a pattern
    ===============================  ==============================================================

    A tar file is indexed once, and the pictures of a Parquet file are unpacked once, which takes
    as much room again: both in the cache, ``itmkit`` in ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Args:
        photos: path of the file, folder or files.
        split: name of the split; ``val`` is also found as ``validation``, ``valid`` or ``dev``.
        column: of the pictures; None: the only one, or ``image`` or ``picture``.

    Raises:
        FileNotFoundError: if there is nothing of that name, or no file of the split.
        InputError: if a file is not whole or holds no pictures, one has no name or one that
            another picture has.
    """
    found = _find(user_path(photos), split)
    if found is None:
        return None
    paths, of_split, place = found
    if any(path.is_dir() or path.suffix == ".arrow" for path in paths):
        pictures: PictureFile = DatasetPictures.from_disk(paths, split, column=column, path=place)
    else:
        pictures = PackedPictures(paths, column=column, path=place)
    pictures.of_split = pictures.of_split or of_split
    return pictures


class _Found(NamedTuple):
    paths: list[Path]
    of_split: bool
    place: Path  # what stands for all of them, in errors


def _find(photos: Path, split: str) -> _Found | None:
    called = split_names(split)
    if "{split}" in str(photos):
        for name in called:
            own = Path(str(photos).replace("{split}", name))
            if own.is_dir():
                found = _find(own, split)
                return found and found._replace(of_split=True)
            if paths := sorted(own.parent.glob(own.name)):
                return _Found(paths, True, paths[0] if len(paths) == 1 else own)
        raise FileNotFoundError(f"{photos} has no file of the split {split!r}")
    if photos.is_dir():
        return _find_in_folder(photos, split)
    if any(mark in photos.name for mark in "*?["):
        paths = sorted(photos.parent.glob(photos.name))
        if paths:
            return _Found(paths, False, photos)
    packed = photos.suffix.lower() in ENDINGS
    if not photos.exists():
        if packed:
            raise FileNotFoundError(f"{photos} is missing")
        return None
    if not packed:
        hint = ""
        if ".tar." in photos.name or photos.suffix == ".tgz":
            hint = (
                ": photos of a compressed tar file cannot be read in any order, unpack it to .tar"
            )
        raise InputError(f"{photos} is neither a folder nor one of {', '.join(ENDINGS)}{hint}")
    return _Found([photos], False, photos)


def _find_in_folder(folder: Path, split: str) -> _Found | None:
    there = {entry.name: entry for entry in os.scandir(folder) if not entry.name.startswith(".")}
    if "dataset_dict.json" in there:
        own = next((folder / name for name in split_names(split) if name in there), None)
        if own is None:
            splits = ", ".join(sorted(name for name, entry in there.items() if entry.is_dir()))
            raise FileNotFoundError(f"{folder} has no split {split!r}; expected one of {splits}")
        return _Found([own], True, own)
    if {"dataset_info.json", "state.json"} <= there.keys():
        return _Found([folder], False, folder)
    files = [
        folder / name
        for name in sorted(there)
        if Path(name).suffix in ENDINGS and Path(name).stem != "metadata"
    ]
    photos = (Path(name).suffix.lower() in SUFFIXES for name in there)
    if not files or any(photos) or any(entry.is_dir() for entry in there.values()):
        return None
    if not any(_starts_with(path, _SPLITS) for path in files):
        return _Found(files, False, folder)
    own_files = [path for path in files if _starts_with(path, split_names(split))]
    if not own_files:
        names = ", ".join(path.name for path in files)
        raise FileNotFoundError(
            f"{folder} has no file of the split {split!r}, such as "
            f"{split}{files[0].suffix}; it has {names[:200]}"
        )
    return _Found(own_files, True, folder if len(own_files) > 1 else own_files[0])


def _starts_with(path: Path, names: Sequence[str]) -> bool:
    return any(path.name.startswith(name) and not path.name[len(name)].isalnum() for name in names)


# --------------------------------------------------------------------------------- tar, Parquet


class PackedPictures(PictureFile):
    """Pictures of tar or Parquet files; see :func:`open_pictures`.

    Args:
        paths: of the files, of one kind.
        column: of the pictures of Parquet files; None: the only one, or ``image`` or ``picture``.
        path: what stands for all of the files in errors; None: the first one.

    Raises:
        InputError: as of :func:`open_pictures`.
    """

    def __init__(
        self, paths: Sequence[Path], *, column: str | None = None, path: Path | None = None
    ) -> None:
        self.path = path or paths[0]
        indices = [_index(own, column) for own in paths]
        self._files = [_Bytes(index.content) for index in indices]
        self._states = [file_state(own) for own in paths]
        self._pictures: list[tuple[int, _Place]] = []  # of every picture the file and the place
        columns: dict[str, list[Any]] = {key: [] for index in indices for key in index.columns}
        columns[_NAME] = []
        lines: list[str] = []
        first: dict[str, tuple[str, str | None]] = {}  # of every name the line and the digest
        unnamed: dict[str | None, str] = {}  # of every digest the name
        for file, (own, index) in enumerate(zip(paths, indices, strict=True)):
            where = f"{own.name}, " if len(paths) > 1 else ""
            given = _given_names(index.columns, len(index.places))
            for place, line, known in zip(index.places, index.lines, given, strict=True):
                name = _inside_name(known, f"{own}, {line}") or place.name
                name = name or unnamed.setdefault(place.digest, f"{len(lines):08d}")
                lines.append(f"{where}{line}")
                columns[_NAME].append(name)
                if name not in first:
                    first[name] = lines[-1], place.digest
                    self._pictures.append((file, place))
                elif place.digest is None or first[name][1] != place.digest:
                    raise InputError(
                        f"{self.path}, {lines[-1]} has another picture {name!r} than "
                        f"{first[name][0]}; expected each name once"
                    )
            for key in columns.keys() - {_NAME}:
                columns[key] += index.columns.get(key) or [None] * len(index.places)
        self.names = list(first)
        self.table = Table(self.path, columns, lines, unit="")

    def read(self, row: int) -> bytes:
        file, place = self._pictures[row]
        return self._files[file].read(place.offset, place.size)

    def state(self, row: int) -> str:
        file, place = self._pictures[row]
        return f"{self._states[file]} {place.offset} {place.size}"


class _Bytes:
    """A file of which pieces are read, opened in every process anew."""

    def __init__(self, path: Path) -> None:
        self.path, self._state, self._file = path, file_state(path), -1

    def read(self, offset: int, size: int) -> bytes:
        if self._file < 0:
            self._file = os.open(self.path, os.O_RDONLY)
        content = os.pread(self._file, size, offset)
        if len(content) < size or file_state(self.path) != self._state:
            raise InputError(f"{self.path} was changed while it was in use; expected one file")
        return content

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": -1}

    def __del__(self) -> None:
        if self._file >= 0:
            os.close(self._file)


class _Place(NamedTuple):
    """Where a picture is, a row each."""

    name: str | None
    offset: int
    size: int
    digest: str | None  # of what it is; None where each name is there once


class _Index(NamedTuple):
    """What is in a file, as lists of a row each."""

    content: Path  # that the offsets are in
    places: list[_Place]
    columns: dict[str, list[Any]]  # what stands beside the pictures
    lines: Sequence[str]  # what a row is called in errors


def _index(path: Path, column: str | None) -> _Index:
    """The index of a file, from the cache where it is there."""
    from pyarrow import parquet

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    is_tar = path.suffix.lower() == ".tar"
    if not is_tar:
        with parquet_errors(path):
            schema = parquet.read_schema(path)
        column = _picture_column(schema, column, path)
    column = None if is_tar else column
    parts = (_VERSION, str(path.resolve()), file_state(path), column or "")
    key = sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]
    folder = default_cache() / f"pictures-{path.stem}-{key}"
    if column is None:
        fill_once(folder, partial(_index_tar, path))
    else:
        fill_once(folder, partial(_unpack_parquet, path, column))
    places, beside = _read_index(folder / "index.parquet")
    if column is None:
        lines = [f"file {place.name}" for place in places]
        keys = dict.fromkeys(key for row in beside for key in row)
        return _Index(path, places, {key: [row.get(key) for row in beside] for key in keys}, lines)
    columns = parquet_columns(path, without=column)
    lines = [f"row {number}" for number in range(1, len(places) + 1)]
    return _Index(folder / "pictures", places, columns, lines)


def _read_index(path: Path) -> tuple[list[_Place], list[dict[str, Any]]]:
    from pyarrow import parquet

    columns = parquet.read_table(path).to_pydict()
    beside = [json.loads(row) for row in columns.pop("beside")]
    return [_Place(*row) for row in zip(*columns.values(), strict=True)], beside


def _write_index(
    folder: Path, places: Sequence[_Place], beside: Sequence[Mapping[str, Any]] | None = None
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {name: [getattr(place, name) for place in places] for name in _Place._fields}
    columns["beside"] = [json.dumps(row) for row in beside or [{}] * len(places)]
    types = {"name": pa.string(), "offset": pa.int64(), "size": pa.int64(), "digest": pa.string()}
    schema = pa.schema({**types, "beside": pa.string()})
    with atomic_write(folder / "index.parquet") as file:
        parquet.write_table(pa.table(columns, schema=schema), file)


def _index_tar(path: Path, folder: Path) -> None:
    """Where the pictures of a tar file are, and what the files of their keys say."""
    pictures: dict[str, _Place] = {}
    keys: dict[str, str] = {}  # of every picture
    beside: dict[str, dict[str, Any]] = {}  # of every key
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = str(PurePosixPath(member.name))
                file = PurePosixPath(name)
                if not member.isfile() or file.name.startswith("."):
                    continue
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{name} is cut short")
                check_name(name, path)
                key, _, ending = name.rpartition("/")[2].partition(".")
                key = str(file.with_name(key or file.name))
                if file.suffix.lower() in SUFFIXES:
                    if name in pictures:
                        raise InputError(f"{path} has the file {name!r} twice; expected it once")
                    pictures[name] = _Place(name, member.offset_data, member.size, None)
                    keys[name] = key
                elif ending in ("txt", "caption", "json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    found = _beside(content.read(), ending, f"{path}, file {name}")
                    beside[key] = {**beside.get(key, {}), **found}
    except (tarfile.TarError, EOFError) as error:
        raise InputError(f"{path} is not a whole tar file: {error}") from error
    if not pictures:
        raise InputError(f"{path} has no picture; expected files that end in {' '.join(SUFFIXES)}")
    owners = Counter(keys.values())
    for name, key in keys.items():
        if owners[key] > 1 and key in beside:
            raise InputError(
                f"{path} has {owners[key]} pictures of the key {key!r}, such as {name!r}; "
                "expected one, where there is a text of the key"
            )
    _write_index(folder, list(pictures.values()), [beside.get(keys[name], {}) for name in pictures])


def _beside(content: bytes, ending: str, source: str) -> dict[str, Any]:
    """What a ``.txt`` or ``.json`` beside a picture says, as columns of its row."""
    try:
        text = content.decode("utf-8-sig")
        if ending != "json":
            return {"caption": [line for line in text.splitlines() if line.strip()]}
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if ending == "json" else "text in UTF-8"
        raise InputError(f"{source} is not {kind}: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{source} is {text[:40]!r}; expected an object {{…}}")
    return {key: value for key, value in found.items() if key != _NAME}


def _unpack_parquet(path: Path, column: str, folder: Path) -> None:
    """Write the pictures of a Parquet file one after the other into a file, each once."""
    from pyarrow import parquet

    places: list[_Place] = []
    written: dict[str, tuple[int, int]] = {}  # offset and size by digest
    with parquet_errors(path), parquet.ParquetFile(path) as file:
        count = file.metadata.num_rows
        print(f"{path}: {count:,} rows with pictures are unpacked once: {folder}", file=sys.stderr)
        with atomic_write(folder / "pictures") as out:
            for batch in file.iter_batches(batch_size=64, columns=[column]):
                for found in batch.column(0).to_pylist():
                    source = f"{path}, row {len(places) + 1}"
                    name, content = _name_and_bytes(found, source)
                    digest = blake2b(content, digest_size=16).hexdigest()
                    if digest not in written:
                        written[digest] = out.tell(), len(content)
                        out.write(content)
                    places.append(_Place(name, *written[digest], digest))
    if not places:
        raise InputError(f"{path} has no rows; expected one or more")
    _write_index(folder, places)


def _picture_column(schema: Any, given: str | None, path: Path) -> str:
    """The column of a table that holds pictures."""
    found = picture_columns(schema)
    if given is not None and given not in found:
        raise InputError(
            f"file_column is {given!r}, but {path} has pictures in "
            f"{', '.join(map(repr, found)) or 'no column'}{did_you_mean(given, found)}"
        )
    usual = [name for name in found if name.lower() in _USUAL]
    if given is None and len(found) != 1 and len(usual) != 1:
        there = ", ".join(map(repr, found or schema.names))
        raise InputError(
            f"{path} has the columns of pictures {there}; expected one, or the option file_column"
            if found
            else f"{path} has the columns {there}; expected one of pictures, {{bytes, path}} or "
            "bytes"
        )
    return given or (usual or found)[0]


def _given_names(columns: Mapping[str, Sequence[Any]], rows: int) -> Sequence[str | None]:
    """The names in a column of the file, where it has one."""
    for own in (columns.get(name) for name in FILE_COLUMNS):
        if own and all(isinstance(name, str) for name in own):
            return own
    return [None] * rows


def _name_and_bytes(found: Any, source: str) -> tuple[str | None, bytes]:
    """The name of a picture, where a row has one, and what it is."""
    name, content = None, found
    if isinstance(found, dict):
        name, content = found.get("path"), found.get("bytes")
    if not content:
        path = f" but the path {name!r}" if name else ""
        raise InputError(f"{source} has no picture{path}; expected its bytes inside the file")
    return _inside_name(name, source), content


def _inside_name(name: str | None, source: str) -> str | None:
    """A name as an image may have it: of a whole path the file, as that is of another machine."""
    if not name:
        return None
    path = PurePosixPath(name)
    name = path.name if path.is_absolute() else str(path)
    check_name(name, source)
    return name


# --------------------------------------------------------------------------------- datasets


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
        column = _picture_column(dataset.features.arrow_schema, column, self.path)
        if isinstance(dataset.features[column], Image):
            dataset = dataset.cast_column(column, Image(decode=False))
        arrow = dataset.with_format("arrow")
        self._pictures, self._column = arrow.select_columns([column]), column
        self._mapped: Any = None
        beside = arrow.remove_columns([column])
        columns = beside[:].to_pydict() if beside.column_names else {}
        paths = self._paths(dataset)
        given = _given_names(columns, len(dataset))
        rows: dict[str, list[int]] = {}  # of every name
        names: list[str] = []
        for row in range(len(dataset)):
            name = _inside_name(given[row] or paths[row], f"{self.path}, row {row + 1}")
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
        self.table = Table(self.path, {**columns, _NAME: names}, lines, unit="")

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
