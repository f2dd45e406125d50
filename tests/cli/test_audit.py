"""``itmkit audit``: a run by its name, a verdict, an exit status."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import write_config

from itmkit.cli import main


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of DAIM that is named ``tiny``."""
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path, "DAIM", max_epochs=1)
    main(["fit", "--config", str(config)])


def test_run_is_audited(run: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["audit", "tiny", "--images", "6"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    assert "6 images × 30 captions" in printed
    assert "pairs permuted" in printed
    assert "verdict: inconclusive" in printed


def test_no_such_run(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["audit", "no-such"])
    assert ended.value.code == 2
    assert "run is 'no-such'" in capsys.readouterr().err
