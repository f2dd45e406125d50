"""What making or updating an index did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass
class Skipped:
    """A picture that could not be read, as the file was then.

    Args:
        path: inside the folder.
        reason: why not.
        size: of the file in bytes.
        mtime: time of its change in nanoseconds.
        tried_with: largest size and formats that were read; while these and the file stay as they
            are, it is skipped without being read. Empty: it is tried again.
    """

    path: str
    reason: str
    size: int
    mtime: int
    tried_with: str = ""


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


def changes(before: Mapping[str, str], after: Mapping[str, str]) -> Update:
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


def duplicates(items: pa.Table) -> list[list[str]]:
    """Groups of paths whose files are equal byte by byte."""
    groups: dict[str, list[str]] = {}
    for path, content in zip(items["path"].to_pylist(), items["hash"].to_pylist(), strict=True):
        groups.setdefault(content, []).append(path)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)
