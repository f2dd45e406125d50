"""Evaluations side by side: how they differ, how sure that is, and which queries make it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from itmkit.checks import InputError, check_count
from itmkit.chunks import chunks
from itmkit.configs.flat import flat_options
from itmkit.evaluation.query_file import ENSEMBLE_FILE, FILE_NAME, QueryFile, read_queries
from itmkit.files import check_different, read_yaml, user_path
from itmkit.metrics import QueryRanks
from itmkit.metrics.bootstrap import paired_bootstrap
from itmkit.metrics.query_ranks import LEVELS, as_folds, recall_of_folds
from itmkit.retrieval import recall_table

_CHUNK = 200  # draws of signs at a time
_SAME_QUERIES = ("fold", "direction", "id", "image", "caption")


class Difference(NamedTuple):
    """How a recall differs between two evaluations of the same queries.

    Args:
        value: the second minus the first, in per cent; of ``rsum`` the sum of six.
        low: lower bound of a 95 % interval by paired bootstrap.
        high: upper bound.
        p: two-sided p-value of a randomisation test: how often a difference at least as large
            comes about where it is drawn for each image which evaluation its ranks are of.
    """

    value: float
    low: float
    high: float
    p: float


class Queries(NamedTuple):
    """How many queries of one direction rank better, worse and the same in the second run."""

    won: int
    lost: int
    same: int


@dataclass(frozen=True)
class Comparison:
    """The second of two evaluations against the first.

    Args:
        differences: by the name of a recall, such as ``i2t_r1`` and ``rsum``.
        queries: by direction, ``i2t`` and ``t2i``.
    """

    differences: dict[str, Difference]
    queries: dict[str, Queries]

    def __str__(self) -> str:
        lines = [f"{'':10}{'difference':>12}{'95 % interval':>20}{'p':>9}"]
        for name, one in self.differences.items():
            interval = f"{one.low:+.1f} to {one.high:+.1f}"
            lines.append(f"{name:10}{one.value:>+12.1f}{interval:>20}{one.p:>9.4f}")
        for direction, (won, lost, same) in self.queries.items():
            lines.append(f"queries {direction}: {won} rank better, {lost} worse, {same} the same")
        return "\n".join(lines)


def compare_ranks(
    first: QueryRanks | Sequence[QueryRanks],
    second: QueryRanks | Sequence[QueryRanks],
    *,
    samples: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Compare two evaluations of the same queries, in the same folds.

    Both the bootstrap and the randomisation test draw images, each with all of its captions:
    captions of one image tend to be found or missed together. They tell whether the difference
    would hold with other queries. They say nothing of other training runs: differences between
    seeds are often larger.

    Args:
        first: ranks of a gallery or of each fold, with ids, as
            :func:`itmkit.retrieval.rank_queries` gives them.
        second: those of the other evaluation.
        samples: number of draws; of the bootstrap a tenth, 100 at least.
        seed: of the draws.

    Raises:
        InputError: other queries, other folds, or ranks without ids.

    Example:
        >>> ids = torch.arange(40)
        >>> ranks = QueryRanks(ids % 3, ids % 2, ids, ids), QueryRanks(ids * 0, ids % 2, ids, ids)
        >>> found = compare_ranks(*ranks)
        >>> found.differences["i2t_r1"]
        Difference(value=65.0, low=50.0, high=80.0, p=9.999...e-05)
        >>> found.queries["i2t"]
        Queries(won=26, lost=0, same=14)
    """
    check_count(10, samples=samples)
    first, second = as_folds(first=first), as_folds(second=second)
    if len(first) != len(second):
        raise InputError(f"the runs have {len(first)} and {len(second)} folds; expected the same")
    pairs = [(_in_order(a), _in_order(b)) for a, b in zip(first, second, strict=True)]
    for number, (a, b) in enumerate(pairs, 1):
        for name in ("image_ids", "text_image_ids", "text_ids"):
            one, other = getattr(a, name), getattr(b, name)
            if one is not None and other is not None and not torch.equal(one, other):
                raise InputError(
                    f"{name} differs in fold {number}; expected two evaluations of the same queries"
                )
    before, after = recall_of_folds([a for a, _ in pairs]), recall_of_folds([b for _, b in pairs])
    bounds = paired_bootstrap(*zip(*pairs, strict=True), samples=max(samples // 10, 100), seed=seed)
    p = _p_values(pairs, samples, seed)
    differences = {
        name: Difference(after[name] - before[name], *bounds[name], value)
        for name, value in p.items()
    }
    queries = {}
    for side in ("i2t", "t2i"):
        change = torch.cat([getattr(b, side) - getattr(a, side) for a, b in pairs])
        counts = [int(part.sum()) for part in (change < 0, change > 0, change == 0)]
        queries[side] = Queries(*counts)
    return Comparison(differences, queries)


def _in_order(ranks: QueryRanks) -> QueryRanks:
    """The same with the queries in the order of their ids."""
    if ranks.image_ids is None or ranks.text_image_ids is None:
        raise InputError("the ranks have no image_ids; expected those of rank_queries")
    i2t = ranks.image_ids.argsort(stable=True)
    keys = ranks.text_image_ids if ranks.text_ids is None else ranks.text_ids
    t2i = keys.argsort(stable=True)
    return QueryRanks(
        ranks.i2t[i2t].cpu(),
        ranks.t2i[t2i].cpu(),
        ranks.image_ids[i2t].cpu(),
        ranks.text_image_ids[t2i].cpu(),
        text_ids=None if ranks.text_ids is None else ranks.text_ids[t2i].cpu(),
    )


def _p_values(
    pairs: Sequence[tuple[QueryRanks, QueryRanks]], samples: int, seed: int
) -> dict[str, float]:
    """Two-sided p-values of the recalls and their sum, by exchanging runs image by image."""
    columns = {}
    for side, ids_name in (("i2t", "image_ids"), ("t2i", "text_image_ids")):
        ids = torch.cat([getattr(a, ids_name) for a, _ in pairs])
        for level in LEVELS:
            hits = [
                ((getattr(b, side) < level).double() - (getattr(a, side) < level).double())
                / (len(pairs) * len(getattr(a, side)))
                for a, b in pairs
            ]
            columns[f"{side}_r{level}"] = (ids, 100 * torch.cat(hits))
    images, rows = torch.cat([ids for ids, _ in columns.values()]).unique(return_inverse=True)
    shares = rows.split([len(ids) for ids, _ in columns.values()])
    parts = torch.zeros(len(images), len(columns) + 1, dtype=torch.float64)
    for column, (share, (_, values)) in enumerate(zip(shares, columns.values(), strict=True)):
        parts[:, column].index_add_(0, share, values)
    parts[:, -1] = parts[:, :-1].sum(1)
    observed = parts.sum(0).abs() - 1e-9  # sums in another order differ by rounding
    generator = torch.Generator().manual_seed(seed)
    reached = torch.zeros(len(observed), dtype=torch.int64)
    for part in chunks(samples, _CHUNK):
        drawn = torch.randint(2, (part.stop - part.start, len(images)), generator=generator)
        reached += ((2.0 * drawn - 1).to(parts.dtype) @ parts).abs().ge(observed).sum(0)
    p = [(1 + count) / (1 + samples) for count in reached.tolist()]
    return dict(zip([*columns, "rsum"], p, strict=True))


@dataclass(frozen=True)
class RunComparison:
    """Evaluated runs side by side.

    Args:
        names: of the runs, as given.
        recalls: of each run.
        comparisons: of each further run with the first.
        options: what differs in the configurations: name → the value of each run.
        changes: for each further run, the queries whose rank changed most: file name, caption
            (None: an image searched), rank in the first run and in that one.
    """

    names: list[str]
    recalls: list[dict[str, float]]
    comparisons: list[Comparison]
    options: dict[str, list[Any]]
    changes: list[list[tuple[str, str | None, int, int]]]

    def __str__(self) -> str:
        parts = [recall_table(dict(zip(self.names, self.recalls, strict=True)))]
        further = zip(self.names[1:], self.comparisons, self.changes, strict=True)
        for name, comparison, changes in further:
            parts.append(f"{name} − {self.names[0]}\n{comparison}")
            rows = [
                f"  {before} → {after}  {image}"
                + ("" if caption is None else f": {' '.join(caption.split())}")
                for image, caption, before, after in changes
            ]
            if rows:
                parts.append("\n".join(["ranks that changed most:", *rows]))
        rows = [
            f"  {option}: {' | '.join(map(str, values))}" for option, values in self.options.items()
        ]
        parts.append("\n".join(["options that differ:", *(rows or ["  none"])]))
        return "\n\n".join(parts)


def compare_runs(
    runs: Sequence[str | Path], *, samples: int = 10_000, seed: int = 0, queries: int = 10
) -> RunComparison:
    """Compare evaluations that ``itmkit test`` or ``validate`` wrote, each with the first.

    Args:
        runs: two or more: see :func:`find_queries`.
        samples: see :func:`compare_ranks`.
        seed: see :func:`compare_ranks`.
        queries: how many queries are listed whose ranks changed most, a run.

    Raises:
        FileNotFoundError: a run that was not evaluated.
        InputError: fewer than two runs, one twice, or evaluations of other queries or protocols.
    """
    check_count(0, queries=queries)
    if len(runs) < 2:
        raise InputError(f"runs has {len(runs)}; expected two or more")
    paths = [find_queries(run) for run in runs]
    check_different("runs", runs, paths)
    files = [read_queries(path) for path in paths]
    first = files[0]
    for file in files[1:]:
        _check_same_queries(first, file)
    options = [_options_of(file.path) for file in files]
    names = dict.fromkeys(name for one in options for name in one)
    values = {name: [one.get(name) for one in options] for name in names}
    return RunComparison(
        [str(run) for run in runs],
        [recall_of_folds(file.folds) for file in files],
        [compare_ranks(first.folds, f.folds, samples=samples, seed=seed) for f in files[1:]],
        {name: row for name, row in values.items() if len(set(map(repr, row))) > 1},
        [_changes(first, file, queries) for file in files[1:]],
    )


def find_queries(run: str | Path) -> Path:
    """The file of the ranks of an evaluation.

    Args:
        run: the file; the folder of ``itmkit test``; that of ``itmkit fit``, or NAME for
            ``runs/NAME/latest``, of which the latest evaluation is taken.

    Raises:
        FileNotFoundError: there is none.
    """
    path = user_path(run)
    for found in (path, path / FILE_NAME):
        if found.is_file():
            return found
    for folder in (path, path / "latest", Path("runs") / path / "latest"):
        if (folder / "config.yaml").is_file():
            own = folder.resolve()
            near = own.parent.glob(f"2*/{FILE_NAME}")
            tests = [file for file in near if _is_of(file, own)]
            if tests:
                return max(tests, key=lambda file: (file.stat().st_mtime, file))
    raise FileNotFoundError(
        f"run is '{run}', without {FILE_NAME}; expected one that was tested: "
        "itmkit test --ckpt_path FOLDER"
    )


def _is_of(queries: Path, run: Path) -> bool:
    """Whether an evaluation is of a checkpoint of a run."""
    checkpoint = (_options_of(queries)).get("ckpt_path")
    return checkpoint is not None and user_path(checkpoint).resolve().is_relative_to(run)


def _options_of(queries: Path) -> dict[str, Any]:
    """The options that an evaluation was run with; none where they are not beside it."""
    for name in ("config.yaml", ENSEMBLE_FILE):
        if (path := queries.with_name(name)).is_file():
            return flat_options(read_yaml(path))
    return {}


def _check_same_queries(first: QueryFile, other: QueryFile) -> None:
    """Raise unless both are of the same images and captions, searched in the same way."""
    for name in ("split", "protocol", "images", "captions"):
        values = [file.about.get(name) for file in (first, other)]
        if values[0] != values[1]:
            raise InputError(
                f"{name} is {values[0]!r} in {first.path} and {values[1]!r} in {other.path}; "
                "expected evaluations of the same queries"
            )
    if not first.table.select(_SAME_QUERIES).equals(other.table.select(_SAME_QUERIES)):
        raise InputError(f"{first.path} and {other.path} are of other queries; expected the same")


def _changes(
    first: QueryFile, other: QueryFile, count: int
) -> list[tuple[str, str | None, int, int]]:
    """The queries whose ranks changed most, by the ratio of both."""
    before, after = (file.table["rank"].to_numpy() for file in (first, other))
    ratio = np.abs(np.log(after / before))
    rows = np.argsort(-ratio, kind="stable")[:count]
    table = first.table.select(["image", "caption"]).take(rows).to_pylist()
    return [
        (row["image"], row["caption"], int(before[place]), int(after[place]))
        for row, place in zip(table, rows, strict=True)
        if ratio[place] > 0
    ]
