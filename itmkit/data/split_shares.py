"""Images drawn into splits by a seed, and written down so that they stay there."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import accumulate
from pathlib import Path

from itmkit.checks import InputError
from itmkit.files import read_json, write_text

DEFAULT_SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def check_shares(shares: Mapping[str, float]) -> None:
    """Raise unless each share is above 0 and all sum to 1.

    Raises:
        InputError: with the shares.
    """
    fits = all(isinstance(s, (int, float)) and s > 0 for s in shares.values())
    if not shares or not fits or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(
            f"shares is {dict(shares)}; expected numbers above 0 that sum to 1, such as "
            f"{DEFAULT_SHARES}"
        )


def draw_splits(names: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """A split for every image, from its name, the shares and the seed alone.

    Every split gets its share, to one image; and at least one, where there are enough images.

    Args:
        names: of the images, in any order.
        shares: of every split, above 0, in all 1.
        seed: of the draw.

    Example:
        >>> splits = draw_splits(map(str, range(10)), {"train": 0.7, "test": 0.3}, seed=0)
        >>> list(splits.values()).count("test")
        3
    """
    check_shares(shares)
    order = _drawn_order(names, seed)
    ends = [0]
    for later, share in zip(reversed(range(len(shares))), accumulate(shares.values()), strict=True):
        end = min(round(len(order) * share), len(order) - later)
        ends.append(max(end, ends[-1] + 1))
    return {
        name: split
        for split, start, end in zip(shares, ends, ends[1:], strict=False)
        for name in order[start:end]
    }


def _drawn_order(names: Iterable[str], seed: int) -> list[str]:
    return sorted(names, key=lambda name: sha256(f"{seed} {name}".encode()).digest())


def _draw_later(
    names: Iterable[str], counts: Counter[str], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """A split for images that came later: an empty one, else the one that lacks most to its share.

    So shares hold also where images come one at a time.
    """
    counts, splits = counts.copy(), {}
    for count, name in enumerate(_drawn_order(names, seed), counts.total() + 1):
        lacks = {split: share * count - counts[split] for split, share in shares.items()}
        splits[name] = max(shares, key=lambda split: (not counts[split], lacks[split]))
        counts[splits[name]] += 1
    return splits


def _replace(path: Path, text: str) -> None:
    """Write a file by way of one of this process: several runs may draw at the same time."""
    own = path.with_name(f".{path.name}.{os.getpid()}")
    write_text(own, text)
    os.replace(own, path)


def kept_splits(
    path: Path, names: Sequence[str], shares: Mapping[str, float], seed: int
) -> dict[str, str]:
    """As :func:`draw_splits`, where the images of an earlier draw stay in their splits.

    Images that came later keep the shares of all, as far as those that stay let them. Nothing is
    written where the folder cannot be written to: the same images then give the same splits again.

    Args:
        path: JSON file of the earlier draw, and of this one.
        names: as of :func:`draw_splits`, and so are ``shares`` and ``seed``.
        shares: as there.
        seed: as there.

    Raises:
        InputError: if the file has other shares or another seed, or is none of these.
    """
    if len(shares) == 1:  # nothing to draw
        return draw_splits(names, shares, seed)
    settings = {"seed": seed, "shares": dict(shares)}
    check_shares(shares)
    old: dict[str, str] = {}
    if path.exists():
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("splits"), dict):
            raise InputError(f"{path} is no draw of splits; delete it, or give split_column")
        other = [key for key, value in settings.items() if content.get(key) != value]
        if other:
            raise InputError(
                f"{path} was drawn with {other[0]} {content.get(other[0])}, not "
                f"{settings[other[0]]}: give the same again, or delete the file to draw anew"
            )
        old = content["splits"]
    counts = Counter(old[name] for name in names if name in old)
    later = [name for name in names if name not in old]
    new = _draw_later(later, counts, shares, seed) if counts else draw_splits(later, shares, seed)
    splits = {name: old.get(name) or new[name] for name in names}
    if new:
        from lightning.pytorch.utilities import rank_zero_only  # knows the rank before all joined

        text = json.dumps({**settings, "splits": {**old, **new}}, ensure_ascii=False, indent=0)
        with suppress(OSError):
            rank_zero_only(_replace)(path, text + "\n")
    return splits
