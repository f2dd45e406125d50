"""What it costs to import a loss, over importing torch, which it needs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

from benchmarks.timing import Comparison, interleave


def comparisons() -> Iterator[Comparison]:
    """Fresh interpreters, in turns."""
    against, work = "import torch", "from itmkit.losses import HECTLoss"
    seconds = interleave({"ours": _fresh(work), "theirs": _fresh(against)}, repeats=11)
    yield Comparison(
        name="imports.hect",
        work=f"`{work}`, a fresh interpreter",
        against=f"`{against}`",
        ours=seconds["ours"],
        theirs=seconds["theirs"],
        target=1.1,
        better="overhead",
    )


def _fresh(statement: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, "-c", statement], check=True)
