"""Make an index of a folder of pictures, or bring one up to date."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from itmkit.checks import InputError, check_choice, check_count
from itmkit.data.captions import fits_a_line
from itmkit.data.photo import (
    check_inside,
    check_max_pixels,
    decoded_formats,
    find_photo_names,
)
from itmkit.files import read_json, user_path, write_text
from itmkit.index import store
from itmkit.index.columns import check_columns, own_columns
from itmkit.index.encoder import PictureEncoder
from itmkit.index.items import FoundFiles, items_table, listed_files
from itmkit.index.pictures import read_pictures
from itmkit.index.update import Skipped, Update, changes, duplicates
from itmkit.retrieval import Encoding

if TYPE_CHECKING:
    import pyarrow as pa

MAX_PIXELS = 100_000_000  # of a picture; larger ones are skipped, not decoded

DTYPES = ("float32", "float16")


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
        dtype: of the stored encodings, tokens too: ``"float32"``, or ``"float16"``, which takes
            half of the disk and keeps scores to about three digits.
        batch_size: pictures encoded at a time.
        num_workers: processes that read pictures; 0 reads them in this one.
        chunk_size: pictures after which the work is saved.
        follow_links: whether links may lead out of the folder.
        max_pixels: pictures with more are skipped.
        progress: whether to show a bar on stderr.

    Raises:
        FileNotFoundError: if there is no such folder.
        InputError: if the folder has no readable picture, the index is of another model, of
            another part, or of another folder that is still there, or is being written, ``output``
            holds other files, or an argument is out of its range.
    """
    root, folder = user_path(photos), user_path(output)
    check_count(batch_size=batch_size, chunk_size=chunk_size)
    check_max_pixels(max_pixels, encoder.preprocessing.scaled_side)
    check_count(0, num_workers=num_workers)
    check_choice("dtype", dtype, DTYPES)
    part, parts = shard
    if not 1 <= part <= parts:
        raise InputError(f"shard is {part}/{parts}; expected i/k with i from 1 to k")
    every = find_photo_names(root, follow_links, argument="photos")
    found = [name for name in every if fits_a_line(name)]
    if not found or not fits_a_line(str(root.resolve())):
        raise InputError(f"{root!a} has no photo whose path is one line of UTF-8; rename it")
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
            tried_with = f"{max_pixels} pixels, {' '.join(decoded_formats())}"
            work = _Work(encoder, root, folder, names, dtype, shard, tried_with)
            if part == 1:
                work.found.skip_names(name for name in every if not fits_a_line(name))
            reading = {"batch_size": batch_size, "num_workers": num_workers}
            work.encode(chunk_size, progress, max_pixels=max_pixels, **reading)
            return work.commit(columns, shard)
    finally:
        kept = store.exists(folder) or any(map(store.exists, folder.glob("partial/part-*")))
        if made_here and not kept:
            shutil.rmtree(folder, ignore_errors=True)


class _Work:
    """What is to be encoded, what was encoded before, and where the result goes."""

    def __init__(
        self,
        encoder: PictureEncoder,
        root: Path,
        folder: Path,
        names: list[str],
        dtype: str,
        shard: tuple[int, int],
        tried_with: str,
    ) -> None:
        self.encoder, self.root, self.folder, self.dtype = encoder, root, folder, dtype
        self.partial = folder / "partial"
        self.identity = {
            "fingerprint": encoder.fingerprint,
            "preprocessing": encoder.preprocessing.to_dict(),
            "dtype": dtype,
        }
        #: the index that there is, if any, and then what is encoded, part by part
        self.held: list[store.Stored] = []
        #: for every hash, in which of these its encoding is, and in which row
        self.places: dict[str, tuple[int, int]] = {}
        self.old = store.read(folder) if store.exists(folder) else None
        if self.old is not None:
            self._check_identity(self.old.manifest, folder)
            self._check_root(Path(self.old.manifest["root"]))
            self._check_shard(self.old.manifest["shard"], shard)
            self._hold(self.old)
        self.before = {} if self.old is None else listed_files(self.old.items)
        bad = [] if self.old is None else self.old.manifest["skipped"]
        skipped = [Skipped(**one) for one in bad]
        self.found = FoundFiles(root, names, self.before, skipped, tried_with)

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

    def _check_shard(self, before: Sequence[int], shard: tuple[int, int]) -> None:
        """Refuse to drop pictures because they are of another part."""
        if list(shard) not in (list(before), [1, 1]):
            raise InputError(
                f"{self.folder} is the index of part {before[0]}/{before[1]}; expected that shard, "
                f"or another output for {shard[0]}/{shard[1]}"
            )

    def _hold(self, stored: store.Stored) -> None:
        for row, content in enumerate(stored.items["hash"].to_pylist()):
            self.places.setdefault(content, (len(self.held), row))
        self.held.append(stored)

    def encode(self, chunk_size: int, progress: bool, **reading: int) -> None:
        """Encode what is not yet, and save it part by part."""
        from tqdm import tqdm

        self._load_parts()
        first: dict[str, str] = {}  # of equal files one alone is encoded
        for name, content in self.found.hashes.items():
            if content not in self.places:
                first.setdefault(content, name)
        todo = list(first.values())
        batches = read_pictures(self.root, todo, self.encoder.preprocessing, **reading)
        names: list[str] = []
        encodings: list[Encoding] = []
        try:
            with tqdm(total=len(todo), unit="pictures", disable=not progress or not todo) as bar:
                for batch in batches:
                    for name, reason in batch.errors.items():
                        self.found.skip(name, reason)
                    if batch.pixels is not None:
                        with torch.no_grad():
                            encoding = self.encoder.encode_pixels(batch.pixels).to("cpu")
                        names += batch.names
                        encodings.append(encoding)
                    bar.update(len(batch.names) + len(batch.errors))
                    if len(names) >= chunk_size:
                        self._save_part(names, encodings)
                        names, encodings = [], []
        finally:  # also when it is interrupted
            if encodings:
                self._save_part(names[: sum(map(len, encodings))], encodings)

    def _load_parts(self) -> None:
        """What a run that was stopped has encoded."""
        note = self.partial / "identity.json"
        if note.is_file():
            self._check_identity(read_json(note), self.partial)
        for path in sorted(self.partial.glob("part-*")):
            if store.exists(path):
                self._hold(store.read(path))

    def _save_part(self, names: list[str], encodings: list[Encoding]) -> None:
        if not self.partial.is_dir():
            self.partial.mkdir(parents=True)
            write_text(self.partial / "identity.json", json.dumps(self.identity, indent=2))
        folder = self.partial / f"part-{len(self.held):06d}"
        folder.mkdir(exist_ok=True)
        sources = {
            name: [_stored(name, value, self.dtype)]
            for name, value in Encoding.cat(encodings).items().items()
        }
        places = np.stack([np.zeros(len(names), np.int64), np.arange(len(names))], 1)
        items = items_table(names, self.found.states, self.found.hashes, {})
        store.write(folder, {}, items, sources, places, generation=1)
        self._hold(store.read(folder))

    def commit(
        self, columns: Mapping[str, Mapping[str, Any]] | None, shard: tuple[int, int]
    ) -> Update:
        """Write the index of all that could be read."""
        hashes, skipped = self.found.hashes, self.found.skipped
        names = [name for name, content in hashes.items() if content in self.places]
        noted = {one.path for one in skipped}
        for name in hashes.keys() - set(names) - noted:
            self.found.skip(name, f"{self.root / name} is a copy of a picture that is not readable")
        skipped.sort(key=lambda one: one.path)
        if not names:
            why = f"; the first: {skipped[0].reason}" if skipped else ""
            raise InputError(f"{self.root} has no picture that can be read{why}")
        if columns is None:
            columns = {} if self.old is None else own_columns(self.old.items)
        table = items_table(names, self.found.states, hashes, columns)
        update = changes(
            {path: content for path, (_, content) in self.before.items()},
            {name: hashes[name] for name in names},
        )
        update.skipped, update.duplicates = skipped, duplicates(table)
        manifest = {
            **self.identity,
            "model": self.encoder.source,
            "root": str(self.root.resolve()),
            "shard": list(shard),
            "skipped": [asdict(one) for one in skipped],
        }
        if not self._equals_old(table, manifest):
            self._write(names, table, manifest)
        shutil.rmtree(self.partial, ignore_errors=True)
        return update

    def _write(self, names: list[str], table: pa.Table, manifest: Mapping[str, Any]) -> None:
        places = np.array([self.places[self.found.hashes[name]] for name in names], dtype=np.int64)
        sources = {name: [held.fields[name] for held in self.held] for name in self.held[0].fields}
        for name, arrays in sources.items():
            shapes = {array.shape[1:] for array in arrays}
            if len(shapes) > 1:
                raise InputError(f"{name} differs in shape from picture to picture: {shapes}")
        generation = 1 if self.old is None else self.old.manifest["generation"] + 1
        store.write(self.folder, manifest, table, sources, places, generation=generation)

    def _equals_old(self, table: pa.Table, manifest: Mapping[str, Any]) -> bool:
        if self.old is None:
            return False
        same = all(self.old.manifest.get(key) == value for key, value in manifest.items())
        return same and bool(table.equals(self.old.items.replace_schema_metadata(None)))


def _stored(name: str, value: Tensor, dtype: str) -> store.Array:
    """A field as it is kept."""
    if not value.is_floating_point():
        return value.numpy()
    kept = value.to(getattr(torch, dtype)).numpy()
    if not np.isfinite(kept).all():
        expected = "a finite number" if dtype == "float32" else "dtype float32"
        raise InputError(f"{name} of a picture is not finite in {dtype}; expected {expected}")
    return kept
