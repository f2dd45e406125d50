"""Two evaluations of the same queries against loops over draws; and the command."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from score_table import Table, gallery
from tiny_cli import run

from itmkit.checks import InputError
from itmkit.cli import main
from itmkit.evaluation import compare_ranks, compare_runs, read_queries, write_queries
from itmkit.metrics import QueryRanks
from itmkit.metrics.query_ranks import recall_of_folds
from itmkit.retrieval import rank_queries
from tests.cli.conftest import tiny_folder  # noqa: F401

NAMES = [f"{side}_r{level}" for side in ("i2t", "t2i") for level in (1, 5, 10)]


def two_runs(images: int, folds: int) -> tuple[list[QueryRanks], list[QueryRanks]]:
    """Ranks of images with two captions each; the second run is better."""
    g = torch.Generator().manual_seed(1)
    found: tuple[list[QueryRanks], list[QueryRanks]] = ([], [])
    for fold in range(folds):
        ids = torch.arange(images) + fold * images
        for runs, worst in zip(found, (14, 8), strict=True):
            i2t, t2i = (torch.randint(worst, (images * k,), generator=g) for k in (1, 2))
            owners = ids.repeat_interleave(2)
            runs.append(QueryRanks(i2t, t2i, ids, owners, text_ids=torch.arange(len(owners))))
    return found


def swapped(a: QueryRanks, b: QueryRanks, images: list[int]) -> QueryRanks:
    """The ranks of a run with those of another for some images and their captions."""
    own = torch.tensor(images, dtype=torch.int64)
    i2t = torch.where(torch.isin(a.image_ids, own), b.i2t, a.i2t)
    t2i = torch.where(torch.isin(a.text_image_ids, own), b.t2i, a.t2i)
    return replace(a, i2t=i2t, t2i=t2i)


@pytest.mark.parametrize(("images", "folds"), [(7, 1), (4, 2)])
def test_p_values_are_those_of_all_exchanges(images: int, folds: int) -> None:
    first, second = two_runs(images, folds)
    differences = []
    for chosen in itertools.product([False, True], repeat=images * folds):
        own = [image for image, swap in enumerate(chosen) if swap]
        a = [swapped(x, y, own) for x, y in zip(first, second, strict=True)]
        b = [swapped(y, x, own) for x, y in zip(first, second, strict=True)]
        before, after = recall_of_folds(a), recall_of_folds(b)
        differences.append([after[name] - before[name] for name in (*NAMES, "rsum")])
    table = torch.tensor(differences, dtype=torch.float64)
    exact = (table.abs() >= table[0].abs() - 1e-9).double().mean(0)
    found = compare_ranks(first, second, samples=20_000)
    for name, p, value in zip((*NAMES, "rsum"), exact, table[0], strict=True):
        assert found.differences[name].value == pytest.approx(value.item())
        assert found.differences[name].p == pytest.approx(p.item(), abs=0.015)


def test_intervals_hold_the_difference_and_shrink_where_runs_agree() -> None:
    first, second = two_runs(200, 1)
    found = compare_ranks(first, second)
    for one in found.differences.values():
        assert one.low <= one.value <= one.high
    assert found.differences["rsum"].p < 0.001 < found.differences["rsum"].low
    assert found.queries["t2i"].won > found.queries["t2i"].lost
    same = compare_ranks(first, first)
    assert set(same.differences.values()) == {(0.0, 0.0, 0.0, 1.0)}
    assert same.queries["t2i"] == (0, 0, 400)


def test_the_order_of_queries_does_not_matter() -> None:
    first, second = two_runs(30, 1)
    (one,) = second
    order, captions = torch.randperm(30), torch.randperm(60)
    other = QueryRanks(
        one.i2t[order],
        one.t2i[captions],
        torch.arange(30)[order],
        torch.arange(60)[captions] // 2,
        text_ids=torch.arange(60)[captions],
    )
    assert compare_ranks(first, [other]) == compare_ranks(first, second)


@pytest.mark.parametrize("samples", [10, 2000])
def test_few_samples_still_make_an_interval(samples: int) -> None:
    (first,), (second,) = two_runs(200, 1)  # of a gallery, without folds
    found = compare_ranks(first, second, samples=samples)
    for one in found.differences.values():
        assert one.low < one.value < one.high
    assert found.differences["rsum"].p == pytest.approx(1 / (samples + 1))


def written(folder: Path, name: str, seed: int, config: str) -> Path:
    """An evaluation of six images whose captions have two lines."""
    g = torch.Generator().manual_seed(seed)
    table = Table(torch.rand(6, 12, generator=g))
    folds = rank_queries(table, gallery(torch.arange(6).repeat_interleave(2), 6), keep=2)
    captions = [f"two\n lines {row}" for row in range(12)]
    write_queries(folder / name / "queries.parquet", folds, "abcdef", captions)
    (folder / name / "config.yaml").write_text(config)
    return folder / name


def test_captions_of_two_lines_and_options_that_are_no_numbers(tmp_path: Path) -> None:
    runs = [written(tmp_path, name, seed, "rate: .nan") for seed, name in enumerate("ab")]
    told = str(compare_runs(runs, samples=10))
    assert re.search(r": two lines \d+$", told, re.MULTILINE)
    assert "options that differ:\n  none" in told


def test_queries_that_changed_most_are_listed_by_the_ratio(tmp_path: Path) -> None:
    runs = [written(tmp_path, name, 0, "a: 1") for name in "ab"]
    for folder, first in zip(runs, ([1, 20, 7], [3, 30, 7]), strict=True):
        table = pq.read_table(folder / "queries.parquet")
        ranks = pa.array([*first, *[1] * (len(table) - 3)], pa.int32())
        place = table.schema.get_field_index("rank")
        pq.write_table(table.set_column(place, "rank", ranks), folder / "queries.parquet")
    (changes,) = compare_runs(runs, samples=10).changes
    assert changes == [("a", None, 1, 3), ("b", None, 20, 30)]


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    runs = [written(tmp_path, "a", 0, "a: 1"), written(tmp_path, "b", 1, "a: [")]
    with pytest.raises(InputError, match=r"b/config.yaml, line 1 is not YAML"):
        compare_runs(runs, samples=10)


def test_error() -> None:
    first, second = two_runs(5, 2)
    with pytest.raises(InputError, match="the runs have 1 and 2 folds; expected the same"):
        compare_ranks(first[:1], second)
    with pytest.raises(InputError, match="image_ids differs in fold 1; expected two evaluations"):
        compare_ranks(first, second[::-1])
    with pytest.raises(InputError, match="second is a list; expected QueryRanks"):
        compare_ranks(first, [])
    with pytest.raises(InputError, match="seed is -1; expected 0 or more"):
        compare_ranks(first, second, seed=-1)
    with pytest.raises(InputError, match="the ranks have no image_ids"):
        compare_ranks(*[[QueryRanks(torch.zeros(2).long(), torch.zeros(2).long())]] * 2)
    with pytest.raises(InputError, match="runs has 1; expected two or more"):
        compare_runs(["a"])


@pytest.mark.usefixtures("tiny_folder")
def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = run("fit", "--name=a", "--model.rate=0.5")
    options = ["test", "--name=a", f"--ckpt_path={fitted}"]
    run(*options, "--trainer.max_epochs=9")  # an older evaluation, which is not taken
    tests = [run(*options, "--trainer.max_epochs=7")]
    tests.append(run("test", "--name=b", "--seed_everything=3"))
    capsys.readouterr()
    main(["compare", "a", str(tests[1]), "--samples=100"])
    told = capsys.readouterr().out
    recalls = [json.loads((one / "metrics.json").read_text())["test/rsum"] for one in tests]
    table = [line.split() for line in told.splitlines()]
    assert [row[-1] for row in table[3:5]] == [f"{value:.1f}" for value in recalls]
    (difference,) = (row[1] for row in table if row[:1] == ["rsum"])
    assert float(difference) == pytest.approx(recalls[1] - recalls[0], abs=0.11)
    assert "  trainer.max_epochs: 7 | 2\n" in told
    assert "  seed_everything: 0 | 3\n" in told
    changes = [row for row in table if row[1:2] == ["→"]]
    ratios = [abs(math.log(int(row[2]) / int(row[0]))) for row in changes]
    assert ratios == sorted(ratios, reverse=True)
    ranks = [read_queries(one).table["rank"].to_pylist() for one in tests]
    assert told.count(" → ") == sum(one != other for one, other in zip(*ranks, strict=True))


@pytest.mark.usefixtures("tiny_folder")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--protocol=2"], "protocol is None in runs/a/"),
        (["--trainer.limit_test_batches=1", "--data.eval_batch_size=2"], "images is 4 in runs/a"),
        (["--keep=0"], "run is 'runs/b/"),
    ],
)
def test_other_queries_are_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = run("test", "--name=a"), run("test", "--name=b", *options)
    with pytest.raises(SystemExit):
        main(["compare", str(first), str(second)])
    assert f"itmkit: error: {message}" in capsys.readouterr().err


@pytest.mark.usefixtures("tiny_folder")
def test_one_evaluation_twice_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run("test", "--name=a")
    with pytest.raises(SystemExit):
        main(["compare", str(folder), f"{folder}/queries.parquet"])
    assert f"runs has '{folder}' and '{folder}/queries.parquet', which" in capsys.readouterr().err


def test_a_run_that_was_not_tested(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"without queries.parquet; expected one that was"):
        compare_runs([tmp_path, tmp_path])
