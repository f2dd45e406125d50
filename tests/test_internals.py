"""Private parts of Lightning: all are there, and a version without one is refused by name."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

import itmkit
from itmkit import _internals


def test_all_are_there() -> None:
    assert _internals.missing_internals() == []


def test_a_method_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_TrainingEpochLoop, "_should_accumulate")
    assert _internals.missing_internals() == ["_TrainingEpochLoop._should_accumulate"]


def test_an_attribute_that_is_gone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_internals._ATTRIBUTES, _TrainingEpochLoop, ("_no_such_count",))
    assert _internals.missing_internals() == ["_TrainingEpochLoop._no_such_count"]


def test_they_are_named_in_one_file() -> None:
    """No other source reads a private attribute of a Trainer, its loops or its strategy."""
    names = {name for owner in _internals._METHODS.values() for name in owner}
    names |= {name for owner in _internals._ATTRIBUTES.values() for name in owner} - {
        "received_sigterm"  # a public property of a Trainer, too
    }
    for path in Path(itmkit.__file__).parent.rglob("*.py"):
        if path.name == "_internals.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in names, f"{path}, line {node.lineno}: {node.attr}"
