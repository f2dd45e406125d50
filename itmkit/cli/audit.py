"""``itmkit audit``: whether the recall of a run is earned; with ``--data``, faults of a dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from itmkit.checks import check_count
from itmkit.cli.parser import call


def audit_run(
    run: str,
    *,
    split: Literal["val", "test"] = "test",
    images: int = 1000,
    batch_size: int = 128,
    seed: int = 0,
    device: str | None = None,
) -> None:
    """Evaluate a run with pairs that are broken, and in ways that should not matter.

    Recall must fall to chance where images change places, images or captions are noise, or the
    model is untrained; it must stay where the order, shards, padding or batches are others. Exit
    status 1 if it does not: something leaks. Recall here counts a caption's own image alone.

    itmkit audit --data CONFIG looks for faults of a dataset; see itmkit audit --data --help.

    Args:
        run: NAME of a run, for runs/NAME/latest, or its folder.
        split: split of the run's data that is audited.
        images: at most so many of the split, the first ones, are audited; they are held in memory.
        batch_size: images encoded at a time.
        seed: seed of permutations and noise.
        device: device of the model, such as ``cuda:1``; where null, a GPU if there is one.
    """
    from itmkit.modes import usable_device
    from itmkit.systems import find_run, load_run
    from itmkit.testing import audit

    check_count(2, images=images)
    check_count(batch_size=batch_size)
    folder = find_run(run)
    model, data = load_run(folder)
    model.to(usable_device(device))
    loader = data.evaluation_dataloader(data.evaluated_split(split))
    print(f"run: {folder}, split {split!r}; a caption's own image alone counts as right")
    found = audit(model, loader, limit=images, batch_size=batch_size, seed=seed, report=print)
    sys.exit(1 if found.verdict == "leak" else 0)


def audit(words: Sequence[str]) -> None:
    """Run the command with the words after ``itmkit audit``."""
    if any(word.partition("=")[0] == "--data" for word in words):
        from itmkit.cli.audit_data import audit_data

        audit_data(words)
    else:
        call(audit_run, words, "audit")
