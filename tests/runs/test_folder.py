from __future__ import annotations

from pathlib import Path

import pytest

from itmkit.runs.folder import claim, discard, note_job, point_latest_to, requeued_from


def test_claim_never_gives_a_folder_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "20200101-000000")
    folders = [claim(tmp_path / "runs", "mate-shapes", suffix="-test") for _ in range(3)]
    assert [folder.name for folder in folders] == [
        "20200101-000000-test",
        "20200101-000000-test-2",
        "20200101-000000-test-3",
    ]
    assert all(folder.is_dir() for folder in folders)


def test_error_name_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "mate").touch()
    with pytest.raises(FileExistsError, match="mate"):
        claim(tmp_path, "mate")


def test_error_runs_is_a_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError, match="runs"):
        claim(tmp_path / "runs", "mate")


def test_discard_leaves_other_runs_and_what_is_above(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first, second = claim(runs, "a"), claim(runs, "a", suffix="-test")
    (second / "config.yaml").touch()
    discard(second, upto=runs)
    assert [path.name for path in runs.rglob("*")] == ["a", first.name]
    point_latest_to(first)
    discard(first, upto=runs)
    assert not runs.exists()
    assert tmp_path.exists()


def test_latest_follows(tmp_path: Path) -> None:
    first, second = claim(tmp_path, "a"), claim(tmp_path, "a", suffix="-2")
    for folder in (first, second):
        point_latest_to(folder)
        assert (tmp_path / "a/latest").resolve() == folder.resolve()
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        first.name,
        second.name,
        "latest",
    }


def test_requeued_job_finds_its_own_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(time: str, job: str, *, saved: bool) -> Path:
        monkeypatch.setenv("SLURM_JOB_ID", job)
        folder = tmp_path / "a" / time
        (folder / "checkpoints").mkdir(parents=True)
        note_job(folder)
        last = folder / "checkpoints/last.ckpt"
        if saved:
            last.touch()
        return last

    assert requeued_from(tmp_path, "a") is None
    make("20200101-000000", "7", saved=True)
    expected = make("20200102-000000", "7", saved=True)
    make("20200103-000000", "7", saved=False)
    make("20200104-000000", "8", saved=True)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert requeued_from(tmp_path, "a") is None  # not requeued: a new run
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    assert requeued_from(tmp_path, "a") is None
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert requeued_from(tmp_path, "a") == expected
    assert requeued_from(tmp_path, "b") is None
    monkeypatch.delenv("SLURM_JOB_ID")
    assert requeued_from(tmp_path, "a") is None
    note_job(tmp_path)
    assert not (tmp_path / "slurm_job").exists()
