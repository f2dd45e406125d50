"""Make an index of a folder of pictures, or bring one up to date."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from itmkit.checks import InputError, check_choice, check_count
from itmkit.data.images import BadSampleError
from itmkit.data.loader import Loader
from itmkit.data.photo import check_inside, photo_names, read_photo
from itmkit.data.preprocessing import Preprocessing
from itmkit.files import read_json, user_path, write_text
from itmkit.index import store
from itmkit.index.items import (
    FileState,
    check_columns,
    file_hash,
    file_states,
    items_table,
    own_columns,
)
from itmkit.retrieval import Encoding

MAX_PIXELS = 100_000_000  # of a picture; larger ones are skipped, not decoded

DTYPES = ("float32", "float16")


class PictureEncoder(Protocol):
    """What an index is made with: :class:`itmkit.Retriever` is one."""

    @property
    def preprocessing(self) -> Preprocessing:
        """From a picture to pixels."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal for equal models alone."""
        ...

    @property
    def source(self) -> str | None:
        """Path or name that it can be loaded by; None where there is none."""
        ...

    def encode_pixels(self, pixels: Tensor) -> Encoding:
        """Encode preprocessed pictures ``(n, 3, H, W)`` uint8."""
        ...


@dataclass
class Skipped:
    """A picture that could not be read, as the file was then."""

    path: str
    reason: str
    size: int
    mtime: int


@dataclass
class Update:
    """What making or updating an index did.

    Args:
        count: pictures in the index now.
        added: new pictures.
        changed: pictures with a new content.
        moved: pictures under a new name, whose encodings were kept.
        removed: pictures that were in the index and are no longer there.
        skipped: pictures that cannot be read.
        duplicates: groups of paths whose files are equal byte by byte.
    """

    count: int = 0
    added: int = 0
    changed: int = 0
    moved: int = 0
    removed: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    duplicates: list[list[str]] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{self.count} pictures"]
        for name in ("added", "changed", "moved", "removed"):
            if number := getattr(self, name):
                parts.append(f"{number} {name}")
        if self.skipped:
            first = self.skipped[0]
            parts.append(f"{len(self.skipped)} skipped (the first: {first.reason})")
        if self.duplicates:
            copies = sum(map(len, self.duplicates)) - len(self.duplicates)
            parts.append(
                f"{copies} copies of others (such as {' = '.join(self.duplicates[0][:2])})"
            )
        return ", ".join(parts)


def build_index(
    encoder: PictureEncoder,
    photos: str | Path,
    output: str | Path,
    *,
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    shard: tuple[int, int] = (1, 1),
    dtype: str = "float32",
    batch_size: int = 32,
    num_workers: int = 0,
    chunk_size: int = 2048,
    follow_links: bool = False,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
) -> Update:
    """Index the pictures of a folder and of the folders inside it.

    What is in the index and did not change is not encoded again. A stopped run goes on where it
    was when it is started again; the index that was there serves until the new one is whole.

    Args:
        encoder: makes the encodings, such as an :class:`itmkit.Retriever`.
        photos: the folder.
        output: folder of the index.
        columns: the user's own columns: from a name to the value of every picture, by its path
            inside ``photos``; None: those that the index has.
        shard: ``(i, k)``, both from 1: take part i of k, to be joined by :func:`merge_indexes`.
        dtype: of the stored encodings, ``"float32"`` or ``"float16"``: half of the disk, scores to
            about three digits.
        batch_size: pictures encoded at a time.
        num_workers: processes that read pictures; 0 reads them in this one.
        chunk_size: pictures after which the work is saved.
        follow_links: whether links may lead out of the folder.
        max_pixels: pictures with more are skipped.
        progress: whether to show a bar on stderr.

    Raises:
        FileNotFoundError: if there is no such folder.
        InputError: if the folder has no readable picture, the index is of another model or of
            another folder that is still there, or is being written, ``output`` holds other files,
            or an argument is out of its range.
    """
    root, folder = user_path(photos), user_path(output)
    check_count(batch_size=batch_size, chunk_size=chunk_size, max_pixels=max_pixels)
    check_count(0, num_workers=num_workers)
    check_choice("dtype", dtype, DTYPES)
    part, parts = shard
    if not 1 <= part <= parts:
        raise InputError(f"shard is {part}/{parts}; expected i/k with i from 1 to k")
    found = photo_names(root, follow_links)
    if parts > len(found):
        raise InputError(
            f"shard is {part}/{parts}, and {root} has {len(found)} pictures; expected at most "
            f"{len(found)} parts"
        )
    check_columns(found, columns or {})
    names = found[part - 1 :: parts]
    if not follow_links:
        for name in names:
            if (root / name).is_symlink():
                check_inside(root / name, root)
    made_here = not folder.exists()
    try:
        with store.writing(folder):
            work = _Work(encoder, root, folder, names, dtype)
            reading = _Reading(batch_size, num_workers, max_pixels)
            work.encode(reading, chunk_size, progress)
            return work.commit(columns, shard)
    except Exception:
        if made_here and not store.exists(folder) and not (folder / "partial").exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def merge_indexes(indexes: Iterable[str | Path], output: str | Path) -> Update:
    """Join indexes of shards of one folder: what one process alone would have made.

    Args:
        indexes: folders of the shards.
        output: folder of the index of all.

    Raises:
        InputError: if they are of different models, folders or types, hold a picture twice, or a
            shard is missing.
    """
    import pyarrow as pa

    held = [store.read(user_path(path)) for path in indexes]
    if not held:
        raise InputError("indexes is empty; expected at least one folder")
    for other in held[1:]:
        for key in ("fingerprint", "preprocessing", "root", "dtype"):
            if other.manifest[key] != held[0].manifest[key]:
                raise InputError(
                    f"{other.folder} has the {key} {other.manifest[key]!r}; expected "
                    f"{held[0].manifest[key]!r}, that of {held[0].folder}"
                )
    try:
        items = pa.concat_tables([each.items for each in held], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"indexes have a column of different types: {error}") from error
    paths = items["path"].to_pylist()
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]!r} is in several of the indexes; expected each picture once")
    _check_shards(held)
    order = sorted(range(len(paths)), key=paths.__getitem__)
    places = np.concatenate(
        [
            np.stack([np.full(len(each.items), source), np.arange(len(each.items))], 1)
            for source, each in enumerate(held)
        ]
    )[order]
    skipped = [Skipped(**one) for each in held for one in each.manifest["skipped"]]
    manifest = {
        **held[0].manifest,
        "shard": [1, 1],
        "skipped": [asdict(one) for one in sorted(skipped, key=lambda one: one.path)],
    }
    folder = user_path(output)
    with store.writing(folder):
        generation = store.read(folder).manifest["generation"] + 1 if store.exists(folder) else 1
        sources = {name: [each.fields[name] for each in held] for name in held[0].fields}
        store.write(folder, manifest, items.take(order), sources, places, generation=generation)
        calibrations = (store.read_calibration(each.folder) for each in held)
        known = next((one for one in calibrations if one is not None), None)
        if known is not None:
            store.write_calibration(folder, known)
    return Update(len(paths), len(paths), skipped=skipped, duplicates=_duplicates(items))


def _check_shards(held: list[store.Stored]) -> None:
    """Refuse shards of which one is missing."""
    shards = {each.folder: each.manifest["shard"] for each in held}
    parts = shards[held[0].folder][1]
    if sorted(shards.values()) != [[i, parts] for i in range(1, parts + 1)]:
        found = ", ".join(f"{folder} ({i}/{k})" for folder, (i, k) in shards.items())
        raise InputError(f"indexes are {found}; expected all parts 1/k to k/k of one folder")


@dataclass
class _Reading:
    """How pictures are read."""

    batch_size: int
    num_workers: int
    max_pixels: int


class _Work:
    """What is to be encoded, what was encoded before, and where the result goes."""

    def __init__(
        self, encoder: PictureEncoder, root: Path, folder: Path, names: list[str], dtype: str
    ) -> None:
        self.encoder, self.root, self.folder, self.dtype = encoder, root, folder, dtype
        self.old = store.read(folder) if store.exists(folder) else None
        self.identity = {
            "fingerprint": encoder.fingerprint,
            "preprocessing": encoder.preprocessing.to_dict(),
            "dtype": dtype,
        }
        if self.old is not None:
            self._check_identity(self.old.manifest, folder)
            self._check_root(Path(self.old.manifest["root"]))
        self.states = file_states(root, names)
        self.names = [name for name in names if name in self.states]
        self.skipped: list[Skipped] = []
        before = {} if self.old is None else _rows_by_path(self.old)
        known_bad = {} if self.old is None else _skipped_by_path(self.old.manifest)
        self.hashes: dict[str, str] = {}
        #: for every hash the source (0: the old index, then parts) and row of its encoding
        self.places: dict[str, tuple[int, int]] = {}
        if self.old is not None:
            for row, content in enumerate(self.old.items["hash"].to_pylist()):
                self.places.setdefault(content, (0, row))
        readable = []
        for name in self.names:
            state = self.states[name]
            if (
                name in known_bad
                and FileState(known_bad[name].size, known_bad[name].mtime) == state
            ):
                self.skipped.append(known_bad[name])
                continue
            known = before.get(name)
            unchanged = known is not None and known[0] == state
            if not (root / name).is_file():  # a pipe would be waited for, for ever
                reason = f"{root / name} is missing, or not a file"
                self.skipped.append(Skipped(name, reason, *state))
                continue
            try:
                self.hashes[name] = known[1] if known and unchanged else file_hash(root / name)
            except OSError as error:
                self.skipped.append(Skipped(name, f"{root / name}: {error.strerror}", *state))
                continue
            readable.append(name)
        self.names = readable
        self.parts: list[store.Stored] = []

    def _check_identity(self, found: Mapping[str, Any], folder: Path) -> None:
        for key, own in self.identity.items():
            if found[key] != own:
                what = "model" if key == "fingerprint" else key
                raise InputError(
                    f"{folder} was made with another {what} ({found[key]!r}); expected {own!r}. "
                    "Give another output, or remove this one"
                )

    def _check_root(self, before: Path) -> None:
        """Refuse to give up the pictures of another folder, unless they have moved."""
        if before != self.root.resolve() and before.is_dir():
            raise InputError(
                f"{self.folder} is the index of {before}; expected that folder instead of "
                f"{self.root}, or another output"
            )

    @property
    def _partial(self) -> Path:
        return self.folder / "partial"

    def encode(self, reading: _Reading, chunk_size: int, progress: bool) -> None:
        """Encode what is not yet, and save it part by part."""
        from tqdm import tqdm

        self._load_parts()
        first: dict[str, str] = {}  # of equal files one alone is encoded
        for name in self.names:
            if self.hashes[name] not in self.places:
                first.setdefault(self.hashes[name], name)
        todo = list(first.values())
        loader = Loader(
            _Pictures(self.root, todo, self.encoder.preprocessing, reading.max_pixels),
            batch_size=reading.batch_size,
            num_workers=reading.num_workers,
            collate_fn=_collate,
            persistent_workers=False,
        )
        done: list[tuple[list[str], Encoding]] = []
        try:
            with tqdm(total=len(todo), unit="pictures", disable=not progress or not todo) as bar:
                for rows, pixels, errors in loader:
                    for row, reason in errors.items():
                        self.skipped.append(Skipped(todo[row], reason, *self.states[todo[row]]))
                    if rows:
                        with torch.no_grad():
                            encoding = self.encoder.encode_pixels(pixels).to("cpu")
                        done.append(([todo[row] for row in rows], encoding))
                    bar.update(len(rows) + len(errors))
                    if sum(len(names) for names, _ in done) >= chunk_size:
                        full, done = done, []
                        self._save_part(full)
        finally:  # also when it is interrupted
            if done:
                self._save_part(done)

    def _load_parts(self) -> None:
        """What a run that was stopped has encoded."""
        note = self._partial / "identity.json"
        if note.is_file():
            self._check_identity(read_json(note), self._partial)
        for path in sorted(self._partial.glob("part-*")):
            if store.exists(path):
                self._add_part(store.read(path))

    def _add_part(self, part: store.Stored) -> None:
        self.parts.append(part)
        for row, content in enumerate(part.items["hash"].to_pylist()):
            self.places.setdefault(content, (len(self.parts), row))

    def _save_part(self, done: list[tuple[list[str], Encoding]]) -> None:
        names = [name for own, _ in done for name in own]
        if not self._partial.is_dir():
            self._partial.mkdir(parents=True)
            write_text(self._partial / "identity.json", json.dumps(self.identity, indent=2))
        fields = {
            name: _stored(name, value, self.dtype)
            for name, value in Encoding.cat([encoding for _, encoding in done]).items().items()
        }
        folder = self._partial / f"part-{len(self.parts):06d}"
        folder.mkdir(exist_ok=True)
        places = np.stack([np.zeros(len(names), np.int64), np.arange(len(names))], 1)
        items = items_table(names, self.states, self.hashes, {})
        sources = {name: [array] for name, array in fields.items()}
        store.write(folder, {}, items, sources, places, generation=1)
        self._add_part(store.read(folder))

    def commit(
        self, columns: Mapping[str, Mapping[str, Any]] | None, shard: tuple[int, int]
    ) -> Update:
        """Write the index of all that could be read."""
        names = [name for name in self.names if self.hashes[name] in self.places]
        noted = {one.path for one in self.skipped}
        for name in self.names:
            if self.hashes[name] not in self.places and name not in noted:
                reason = f"{self.root / name} is a copy of a picture that is not readable"
                self.skipped.append(Skipped(name, reason, *self.states[name]))
        self.skipped.sort(key=lambda one: one.path)
        if not names:
            why = f"; the first: {self.skipped[0].reason}" if self.skipped else ""
            raise InputError(f"{self.root} has no picture that can be read{why}")
        if columns is None:
            columns = {} if self.old is None else own_columns(self.old.items)
        table = items_table(names, self.states, self.hashes, columns)
        before = {} if self.old is None else _rows_by_path(self.old)
        update = _update(
            {path: content for path, (_, content) in before.items()},
            {name: self.hashes[name] for name in names},
        )
        update.skipped, update.duplicates = self.skipped, _duplicates(table)
        manifest = {
            **self.identity,
            "model": self.encoder.source,
            "root": str(self.root.resolve()),
            "shard": list(shard),
            "skipped": [asdict(one) for one in self.skipped],
        }
        if self.old is not None and self._equals_old(table, manifest):
            shutil.rmtree(self._partial, ignore_errors=True)
            return update
        places = np.array([self.places[self.hashes[name]] for name in names], dtype=np.int64)
        held = [*([] if self.old is None else [self.old]), *self.parts]
        if self.old is None:
            places[:, 0] -= 1
        shapes = {name: {each.fields[name].shape[1:] for each in held} for name in held[0].fields}
        for name, found in shapes.items():
            if len(found) > 1:
                raise InputError(f"{name} differs in shape from picture to picture: {found}")
        sources = {name: [each.fields[name] for each in held] for name in held[0].fields}
        generation = 1 if self.old is None else self.old.manifest["generation"] + 1
        store.write(self.folder, manifest, table, sources, places, generation=generation)
        shutil.rmtree(self._partial, ignore_errors=True)
        return update

    def _equals_old(self, table: Any, manifest: Mapping[str, Any]) -> bool:
        assert self.old is not None
        same = all(self.old.manifest.get(key) == value for key, value in manifest.items())
        return same and bool(table.equals(self.old.items.replace_schema_metadata(None)))


class _Pictures(Dataset[tuple[int, "Tensor | str"]]):
    """The pixels of pictures, or why there are none."""

    def __init__(
        self, root: Path, names: list[str], preprocessing: Preprocessing, max_pixels: int
    ) -> None:
        self.root, self.names, self.preprocessing = root, names, preprocessing
        self.max_pixels = max_pixels

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        path = self.root / self.names[row]
        side = self.preprocessing.scaled_side
        try:
            return row, self.preprocessing(read_photo(path, side=side, max_pixels=self.max_pixels))
        except BadSampleError as error:
            return row, str(error)

    def __len__(self) -> int:
        return len(self.names)


def _collate(
    items: list[tuple[int, Tensor | str]],
) -> tuple[list[int], Tensor | None, dict[int, str]]:
    good = [(row, found) for row, found in items if isinstance(found, Tensor)]
    errors = {row: found for row, found in items if isinstance(found, str)}
    pixels = torch.stack([found for _, found in good]) if good else None
    return [row for row, _ in good], pixels, errors


def _stored(name: str, value: Tensor, dtype: str) -> store.Array:
    """A field as it is kept: tokens take most of the space, and serve the second look alone."""
    if not value.is_floating_point():
        return value.numpy()
    half = dtype == "float16" or name.endswith("tokens")
    return value.numpy().astype(np.float16 if half else np.float32)


def _rows_by_path(stored: store.Stored) -> dict[str, tuple[FileState, str]]:
    columns = (stored.items[name].to_pylist() for name in ("path", "size", "mtime", "hash"))
    return {
        path: (FileState(size, mtime), content)
        for path, size, mtime, content in zip(*columns, strict=True)
    }


def _skipped_by_path(manifest: Mapping[str, Any]) -> dict[str, Skipped]:
    return {one["path"]: Skipped(**one) for one in manifest["skipped"]}


def _update(before: Mapping[str, str], after: Mapping[str, str]) -> Update:
    """What has changed from one state to another, both from path to hash."""
    new = [path for path in after if path not in before]
    gone = Counter(content for path, content in before.items() if path not in after)
    moved = sum((gone & Counter(after[path] for path in new)).values())
    return Update(
        count=len(after),
        added=len(new) - moved,
        changed=sum(before[path] != after[path] for path in after if path in before),
        moved=moved,
        removed=gone.total() - moved,
    )


def _duplicates(items: Any) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for path, content in zip(items["path"].to_pylist(), items["hash"].to_pylist(), strict=True):
        groups.setdefault(content, []).append(path)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
