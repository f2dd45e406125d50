"""The table of commands."""

from __future__ import annotations

from importlib import import_module

import pytest

from itmkit.cli import COMMANDS, MODULES, main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_there_and_told_in_a_line(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    does = COMMANDS[name]
    assert callable(getattr(import_module(f"itmkit.cli.{MODULES.get(name, name)}"), name))
    main(["--help"])
    (line,) = (li for li in capsys.readouterr().out.splitlines() if li.startswith(f"  {name:11}"))
    assert line.endswith(does)
    assert len(line) <= 100
