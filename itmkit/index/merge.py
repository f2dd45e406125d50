"""Join indexes of the shards of one folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from itmkit.checks import InputError
from itmkit.files import user_path
from itmkit.index import store
from itmkit.index.update import Skipped, Update, duplicates

_SAME = ("fingerprint", "preprocessing", "dtype")  # of an index, whatever its pictures


def merge_indexes(
    indexes: Iterable[str | Path], output: str | Path, *, photos: str | Path | None = None
) -> Update:
    """Join indexes of shards of one folder: what one process alone would have made.

    Args:
        indexes: folders of the shards.
        output: folder of the index of all.
        photos: folder of the pictures, as where the shards were made; None: it is not compared.

    Raises:
        InputError: if they are of different models, folders or types, hold a picture twice, or a
            shard is missing; if they are of other ``photos``; or ``output`` is the index of another
            model, type, or folder that is still there.
    """
    import pyarrow as pa

    held = [store.read(user_path(path)) for path in indexes]
    if not held:
        raise InputError("indexes is empty; expected at least one folder")
    for other in held[1:]:
        _check_same(held[0], other, *_SAME, "root")
    root = held[0].manifest["root"]
    if photos is not None and str(user_path(photos).resolve()) != root:
        raise InputError(f"photos is '{photos}', and the indexes are of {root}; expected that")
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
        generation = 1
        if store.exists(folder):
            old = store.read(folder)
            moved = not Path(old.manifest["root"]).is_dir()
            _check_same(held[0], old, *_SAME, *(() if moved else ("root",)))
            generation += old.manifest["generation"]
        sources = {name: [each.fields[name] for each in held] for name in held[0].fields}
        store.write(folder, manifest, items.take(order), sources, places, generation=generation)
        calibrations = (store.read_calibration(each.folder, dict) for each in held)
        known = next((one for one in calibrations if one is not None), None)
        if known is not None:
            store.write_calibration(folder, known)
    return Update(len(paths), len(paths), skipped=skipped, duplicates=duplicates(items))


def _check_same(first: store.Stored, other: store.Stored, *keys: str) -> None:
    for key in keys:
        if other.manifest[key] != first.manifest[key]:
            raise InputError(
                f"{other.folder} has the {key} {other.manifest[key]!r}; expected "
                f"{first.manifest[key]!r}, that of {first.folder}"
            )


def _check_shards(held: list[store.Stored]) -> None:
    """Refuse shards of which one is missing."""
    shards = {each.folder: each.manifest["shard"] for each in held}
    parts = shards[held[0].folder][1]
    if sorted(shards.values()) != [[i, parts] for i in range(1, parts + 1)]:
        found = ", ".join(f"{folder} ({i}/{k})" for folder, (i, k) in shards.items())
        raise InputError(f"indexes are {found}; expected all parts 1/k to k/k of one folder")
