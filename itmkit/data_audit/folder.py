"""The audit of a dataset as text, tables, and a list of what to leave out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from itmkit.data import ImageTextData
from itmkit.data.exclusion import excluded_rows
from itmkit.data.table import write_table
from itmkit.data_audit.captions import caption_statistics
from itmkit.data_audit.duplicates import Duplicate, duplicate_images
from itmkit.data_audit.mismatch import Fit, Suspect, rank_mismatches
from itmkit.files import user_path


def audit_data(
    data: ImageTextData,
    folder: str | Path,
    *,
    fit: Fit | None = None,
    cost: str = "two trainings",
    threshold: float = 0.99,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> Path:
    """Look for what is wrong with a dataset, and write what could be left out of training.

    Writes ``duplicates.csv`` (:func:`duplicate_images`), ``mismatches.csv``
    (:func:`rank_mismatches`, all captions, worst first) and ``exclude.csv`` for
    ``ImageTextData(exclude=…)``: training images that another split has too, and captions that
    are more likely of another image than of their own. Rows of the list that ``data`` excludes
    already come first in it, so that it takes that one's place.

    Args:
        data: the dataset.
        folder: that is written to.
        fit: see :func:`rank_mismatches`; None leaves that out.
        cost: what ``fit`` costs, which is said before.
        threshold: see :func:`duplicate_images`.
        seed: see :func:`rank_mismatches`.
        report: is called with every part of the text.

    Returns:
        The path of ``exclude.csv``.
    """
    folder = user_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    splits = list(dict.fromkeys(filter(None, (data.train_split, data.val_split, data.test_split))))
    for split in splits:
        dataset = data.split(split)
        report(f"{split}: {len(dataset):,} images")
        if dataset.captions:
            report(
                str(caption_statistics(dataset.captions, dataset.caption_images, data.tokenizer))
            )
    pairs = duplicate_images(data, splits, threshold=threshold)
    exact = sum(pair.cosine == 1.0 for pair in pairs)
    first = f", such as {pairs[0].image} = {pairs[0].other}" if pairs else ""
    report(f"images in two splits: {exact:,} equal, {len(pairs) - exact:,} nearly{first}")
    write_table(folder / "duplicates.csv", Duplicate._fields, pairs)
    shared = sorted({pair.image for pair in pairs if pair.split == data.train_split})
    before = [] if data.exclude is None else excluded_rows(data.exclude)
    found = [(name, "") for name in shared]
    if fit is not None:
        report(f"mismatches: {cost}")
        suspects = rank_mismatches(fit, data, folder, seed=seed)
        found += _write_mismatches(folder, data, suspects, report)
    path = folder / "exclude.csv"
    write_table(path, ("image", "caption"), dict.fromkeys([*before, *found]))
    carried = f", and the {len(before):,} rows of {data.exclude}" if before else ""
    report(f"{len(shared):,} images and {len(found) - len(shared):,} captions{carried}: {path}")
    return path


def _write_mismatches(
    folder: Path, data: ImageTextData, found: Sequence[Suspect], report: Callable[[str], None]
) -> list[tuple[str, str]]:
    train = data.split(data.train_split)
    owners = train.caption_images[torch.tensor([one.caption for one in found])].tolist()
    rows = [
        (
            train.names[owner],
            train.captions[one.caption],
            f"{one.score:.4f}",
            f"{one.probability:.4f}",
        )
        for one, owner in zip(found, owners, strict=True)
    ]
    write_table(folder / "mismatches.csv", ("image", "caption", "score", "probability"), rows)
    suspected = [row[:2] for row, one in zip(rows, found, strict=True) if one.probability > 0.5]
    report(f"{len(suspected):,} of {len(rows):,} captions are suspected; the worst:")
    for image, caption in [row[:2] for row in rows[:5]]:
        report(f"  {image}: {caption}")
    return suspected
