"""Processes that fail or hang make their test fail, and are gone after it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from processes import run_all, run_ranks

HANG = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_know_who_they_are(tmp_path: Path, size: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "folder, rank = sys.argv[1], os.environ['RANK']\n"
        "open(f'{folder}/{rank}', 'w').write(os.environ['WORLD_SIZE'])\n"
    )
    run_ranks(script, tmp_path, size=size)
    assert [(tmp_path / str(rank)).read_text() for rank in range(size)] == [str(size)] * size


def test_error_of_a_process_that_hangs(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    with pytest.raises(pytest.fail.Exception, match="still running"):
        run_all([([sys.executable, "-c", HANG, str(pid)], {})], timeout=2)
    assert gone(int(pid.read_text()))


def test_error_of_one_process_ends_the_other_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    broken = [sys.executable, "-c", "raise KeyError('broken rank')"]
    with pytest.raises(pytest.fail.Exception, match="broken rank"):
        run_all([([sys.executable, "-c", HANG, str(tmp_path / "pid")], {}), (broken, {})])
    assert time.monotonic() - start < 20
