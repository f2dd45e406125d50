"""The workflows of the repository: what they name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = {path.name: path for path in (ROOT / ".github/workflows").glob("*.yml")}

pytestmark = pytest.mark.skipif(not WORKFLOWS, reason="needs .github, which the sdist leaves out")


def steps() -> Iterator[dict[str, Any]]:
    for path in WORKFLOWS.values():
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            yield from job["steps"]


def test_actions_are_pinned_by_commit_with_their_version() -> None:
    lines = [line for path in WORKFLOWS.values() for line in path.read_text().splitlines()]
    used = [line for line in lines if "uses:" in line]
    assert used
    for line in used:
        assert re.search(r"uses: [\w-]+/[\w-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+$", line), line
    # one commit of each action
    assert len({line.partition("uses: ")[2] for line in used}) == len(
        {line.partition("uses: ")[2].partition("@")[0] for line in used}
    )


def test_commands_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    variables = set(re.findall(r"\$\{?(\w+):-", (ROOT / ".ci/run").read_text()))
    commands = [step["run"] for step in steps() if "run" in step]
    assert {"make docs", "make links", "make test-extras"} <= set(commands)
    for command in commands:
        *given, program = command.split(" ", command.count("=")) if "=" in command else [command]
        if program.startswith("make "):
            assert program.removeprefix("make ") in targets, command
        else:
            assert program == ".ci/run", command
            assert {one.partition("=")[0] for one in given} <= variables | {"PYTHON"}, command


@pytest.mark.parametrize("name", WORKFLOWS)
def test_rights_are_stated(name: str) -> None:
    """No job gets the rights that a repository gives by default."""
    content = yaml.safe_load(WORKFLOWS[name].read_text())
    assert content["permissions"] == {"contents": "read"}
