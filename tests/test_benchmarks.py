"""The harness of the benchmarks, on a topic that is made up."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report

ROOT = Path(__file__).parents[1]
HARNESS = ("__init__", "__main__", "machine", "report", "timing", "topic")
TOPIC = """
from benchmarks.timing import Comparison, Skipped, interleave


def comparisons():
    seconds = interleave({"ours": lambda: sum(range(9)), "theirs": lambda: sum(range(99))})
    yield Comparison("made_up.sum", "a sum", "a | longer one", **seconds, note="adds up")
    yield Comparison(
        "made_up.memory", "memory", "more", [2.0], [8.0], 2, unit="MB", difference=1e-7
    )
    yield Comparison(
        "made_up.overhead", "a step", "a loop", [3.0, 3.0], [2.0], 1.1, "overhead",
        floors={"GEMM": 1.5, "copy": 0.5},
    )
    yield Skipped("made_up.bf16", "a product", "bfloat16 is 6.0× slower than float32 here")
"""
PAGE = """# Performance

Written by hand.

<!-- machines -->
<!-- end of machines -->

<!-- made_up -->
of an earlier run
<!-- end of made_up -->

And so is this.
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "docs").mkdir()
    for name in HARNESS:
        shutil.copy(ROOT / "benchmarks" / f"{name}.py", tmp_path / "benchmarks")
    with (tmp_path / "benchmarks" / "machine.py").open("a") as file:
        file.write("\n_GEMM_SIZE, _COPY_BYTES = 256, 1 << 20\n")  # quick, if not right
    (tmp_path / "benchmarks" / "bench_made_up.py").write_text(TOPIC)
    (tmp_path / "docs" / "performance.md").write_text(PAGE)
    return tmp_path


def run(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{project}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)


def test_table_has_no_empty_columns() -> None:
    found = report.read(ROOT / "benchmarks" / "results.json")["comparisons"]
    (imports,) = [one for one in found if one["name"].startswith("imports.")]
    heads, line, row = report.table([imports]).splitlines()
    assert heads == "| work | against | ours | theirs | ratio | target |"
    assert line == "| --- | --- | --- | --- | --- | --- |"
    assert row.endswith("× | ≤ 1.1×, met |")


def test_run_writes_results_and_tables_and_a_failure_keeps_them(project: Path) -> None:
    done = run(project)
    assert done.returncode == 0, done.stderr
    assert "made_up.memory: 2 MB against 8 MB, 4× (≥ 2×, met)" in done.stdout
    assert "made_up.bf16: skipped: bfloat16 is 6.0× slower than float32 here" in done.stdout

    results = json.loads((project / "benchmarks" / "results.json").read_text())
    assert results["machines"]["made_up"]["threads"] == 2
    assert min(results["machines"]["made_up"]["rates"].values()) > 0
    by_name = {one["name"]: one for one in results["comparisons"]}
    assert len(by_name["made_up.sum"]["ours"]) == 7
    assert by_name["made_up.memory"]["medians"] == {"ours": 2.0, "theirs": 8.0}
    assert [by_name[f"made_up.{case}"]["met"] for case in ("sum", "memory", "overhead")] == [
        None, True, False,
    ]  # fmt: skip

    page = (project / "docs" / "performance.md").read_text()
    assert "| memory | more | 2 MB | 8 MB | 4× | ≥ 2×, met |  | 1.0e-07 |" in page
    assert "3 s ± 0 % | 2 s | 1.5× | ≤ 1.1×, **missed** | 1.5 s (GEMM), 2× it |" in page
    assert "| a product |  | skipped: bfloat16 is 6.0× slower than float32 here |" in page
    assert "a \\| longer one" in page
    assert "- a sum: adds up\n<!-- end of made_up -->\n\nAnd so is this.\n" in page
    assert page.startswith("# Performance\n\nWritten by hand.\n\n<!-- machines -->\nmade_up:\n\n- ")
    assert "of an earlier run" not in page

    broken = project / "benchmarks" / "bench_broken.py"
    broken.write_text("def comparisons():\n    raise KeyError('broken')\n    yield\n")
    done = run(project, "broken")
    assert done.returncode == 1
    assert "KeyError: 'broken'" in done.stderr
    assert "failed: broken" in done.stderr
    kept = json.loads((project / "benchmarks" / "results.json").read_text())
    assert kept["comparisons"] == results["comparisons"]
    _, marker, made_up = page.partition("<!-- made_up -->")
    assert (project / "docs" / "performance.md").read_text().endswith(marker + made_up)
    assert sorted(path.name for path in (project / "benchmarks").glob("*.json*")) == [
        "results.json"
    ]


def test_error_of_an_unknown_topic(project: Path) -> None:
    done = run(project, "nothing")
    assert done.returncode == 2
    assert "topic: expected one of made_up, got 'nothing'" in done.stderr


def test_compare_shows_new_over_old(project: Path) -> None:
    def write(path: Path, medians: dict[str, float]) -> None:
        comparisons = [
            {"name": name, "unit": "s", "medians": {"ours": median}}
            for name, median in medians.items()
        ]
        path.write_text(json.dumps({"machines": {}, "comparisons": comparisons}))

    write(project / "old.json", {"made_up.a": 2.0, "made_up.b": 1.0, "other.c": 1.0})
    write(
        project / "benchmarks" / "results.json",
        {"made_up.a": 1.0, "made_up.d": 0.5, "other.c": 1.0},
    )
    done = run(project, "made_up", "--compare", "old.json")
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["name", "old", "new", "new/old"],
        ["made_up.a", "2", "s", "1", "s", "0.50"],
        ["made_up.d", "500", "ms", "new"],
        ["made_up.b", "1", "s", "gone"],
    ]
