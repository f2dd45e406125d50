"""``python -m benchmarks [topic ...]``: times every ``bench_<topic>.py`` and writes the results."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import report

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
PAGE = FOLDER.parent / "docs" / "performance.md"


def topics() -> list[str]:
    """Names of the topics there are."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def run(topic: str) -> Any:
    """What a topic found in a process of its own, or None where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks.topic", topic, str(found)]
        environment = {"OMP_NUM_THREADS": "2", **os.environ}
        done = subprocess.run(command, cwd=FOLDER.parent, env=environment)
        return json.loads(found.read_text()) if done.returncode == 0 else None


def main(argv: list[str] | None = None) -> int:
    """Run the topics, or compare results; the exit status is 1 where a topic failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("topics", nargs="*", metavar="topic", help="all by default")
    parser.add_argument(
        "--compare",
        type=Path,
        metavar="OLD",
        help="run nothing; show how results.json differs from an older one",
    )
    arguments = parser.parse_args(argv)
    known = topics()
    for topic in arguments.topics:
        if topic not in known:
            parser.error(f"topic: expected one of {', '.join(known)}, got {topic!r}")
    chosen = arguments.topics or known
    if arguments.compare is not None:
        print(report.compare(report.read(arguments.compare), report.read(RESULTS), chosen))
        return 0
    failed = []
    start = time.monotonic()
    machine = run("machine")
    if machine is None:
        return 1
    for topic in chosen:
        print(f"{topic} ({time.monotonic() - start:.0f} s)", flush=True)
        found = run(topic)
        if found is None:
            failed.append(topic)
        else:
            report.take(topic, found, machine, RESULTS, PAGE)
    if failed:
        print(f"failed: {', '.join(failed)}; their earlier results are kept", file=sys.stderr)
    print(f"{RESULTS.name} and {PAGE.name} are written ({time.monotonic() - start:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
