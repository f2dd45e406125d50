"""The ablations of ``python -m benchmarks.claims``: their variants, runs and table."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from systems import DIM, IMAGE, SYSTEMS, TEXT, make_batch

from benchmarks import claims
from benchmarks.claims import ROWS, Row, Settings, commands_of, measured, table
from benchmarks.variants import PooledMATE, Pooling, UnrefinedTVRN
from itmkit.configs import load_config
from itmkit.configs.agreement import accepts, class_of, completed, with_option
from itmkit.systems import TVRN
from itmkit.testing import check_matcher


@pytest.mark.parametrize("pooling", ["mean", "generalised"])
def test_mate_keeps_the_laws_with_another_pooling(pooling: Pooling) -> None:
    def make() -> PooledMATE:
        return PooledMATE(IMAGE["regions"](), TEXT["gru"](), pooling=pooling, warmup=0)

    check_matcher(make, make_batch(SYSTEMS["mate"]), processes=1)


def unrefined(**parts: bool) -> UnrefinedTVRN:
    return UnrefinedTVRN(
        IMAGE["regions"](), TEXT["gru"](), similarity_dim=8, chunk_pairs=20, **parts
    )


@pytest.mark.parametrize("part", ["text_refinement", "visual_refinement"])
def test_tvrn_keeps_the_laws_without_a_refinement(part: str) -> None:
    batch = make_batch(SYSTEMS["tvrn_sgr"])
    check_matcher(partial(unrefined, **{part: False}), batch, processes=1)


def test_unrefined_sides_are_the_tokens_themselves() -> None:
    torch.manual_seed(0)
    words, regions = torch.randn(3, 4, DIM), torch.randn(2, 5, DIM)
    parts = unrefined(text_refinement=False, visual_refinement=False).similarity
    image = parts.visual(regions, torch.eye(5).expand(2, 5, 5))
    assert image.context.equal(regions)
    assert image.tokens.equal(regions.repeat(1, 2, 1))
    text = parts.textual(words, image.context)
    assert text.tokens.equal(words.repeat(1, 2, 1).expand(2, -1, -1, -1))
    assert text.vector[0].equal(text.vector[1])
    whole = TVRN(IMAGE["regions"](), TEXT["gru"](), similarity_dim=8).similarity
    refined = whole.textual(words, image.context)
    assert not torch.allclose(refined.vector[0], refined.vector[1])


def test_rows_are_compared_with_rows_of_the_same_system() -> None:
    rows = {row.name: row for row in ROWS}
    assert len(rows) == len(ROWS)
    for row in ROWS:
        if row.base is not None:
            assert rows[row.base].config.split("/")[0] == row.config.split("/")[0]


def record(row: str, seed: int, rsum: float, **more: Any) -> dict[str, Any]:
    recall = dict.fromkeys(claims._KEPT, 50.0) | {"rsum": rsum}
    return {"row": row, "seed": seed, "steps": None, "minutes": 2.0, "test": recall} | more


def test_table_has_means_spreads_and_differences_of_the_same_seeds() -> None:
    first = record("", 0, 512.0)["test"]
    records = [
        record("mate", 0, 500.0),
        record("mate", 1, 510.0),
        record("mate, no HECT", 0, 490.0),
        record("mate, no HECT", 1, 504.0),
        record("mate, no HECT", 2, 100.0),
        record("mate, fusion", 0, 540.0, **{"first-stage": first}),
    ]
    lines = table(records).splitlines()[2:]
    assert lines == [
        "|  | mate | 2 | 50.0 ± 0.0 | 50.0 ± 0.0 | 505.0 ± 5.0 |  |  | 2.0 |",
        "| fusion | mate, fusion: its global branch | 1 | 50.0 | 50.0 | 512.0 | mate | +12.0 |  |",
        "| fusion | mate, fusion | 1 | 50.0 | 50.0 | 540.0 | mate, fusion: its global branch "
        "| +28.0 | 2.0 |",
        "| HECT | mate, no HECT | 3 | 50.0 ± 0.0 | 50.0 ± 0.0 | 364.7 ± 202.0 | mate "
        "| -8.0 ± 2.0 | 2.0 |",
    ]


def test_runs_that_are_done_are_kept_and_failed_ones_are_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[str, int]] = []

    def fake(row: Row, seed: int, settings: Settings, processes: Any) -> dict[str, Any]:
        started.append((row.name, seed))
        if row.name == "daim" and len(started) < 4:
            return {"row": "daim", "seed": 0, "error": "out of memory"}
        return record(row.name, seed, 500.0)

    monkeypatch.setattr(claims, "measured", fake)
    output = tmp_path / "claims.json"
    words = ["--output", str(output), "--only", "mate", "daim", "tvrn, SAF"]
    assert claims.main([*words, "--seeds", "0"]) == 1
    assert "daim, seed 0: failed: out of memory" in capsys.readouterr().err
    assert sorted(started) == [("daim", 0), ("mate", 0), ("tvrn, SAF", 0)]
    assert claims.main([*words, "--seeds", "0", "1"]) == 0
    assert started[3:] == [("daim", 0), ("mate", 1), ("daim", 1)]  # SAF has one seed
    assert len(json.loads(output.read_text())) == 5
    assert output.with_suffix(".md").read_text() in capsys.readouterr().out


def test_a_run_that_fails_is_reported_with_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_CHILD", "raise SystemExit('out of memory')")
    found = measured(ROWS[0], 0, Settings("cpu", 2), claims.Processes())
    assert "exit status 1" in found["error"]
    assert "out of memory" in found["error"]
    assert "test" not in found


def test_processes_end_when_stopped(tmp_path: Path) -> None:
    processes = claims.Processes()
    processes.stop()
    assert processes.run(["sleep", "60"], log=tmp_path / "log", cwd=tmp_path) != 0


def test_first_stage_of_a_fused_run_is_measured_too() -> None:
    row = next(row for row in ROWS if row.config == "mate/shapes_fused")
    commands = commands_of(row, 3, Settings("gpu", None))
    assert [words[0] for words in commands] == ["fit", "test", "test"]
    assert "first-stage" in commands[2]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_options_of_every_row_are_those_of_its_system(row: Row) -> None:
    config = load_config(row.config)
    for option, value in {**row.options, **(row.partner or {})}.items():
        owner, _, name = option.rpartition(".")
        if owner:
            assert accepts(class_of(config, owner) or "", name), option
        config = with_option(config, option, value)
    completed(config)
