"""Private parts of Lightning: all are there, and a version without one is refused by name.

And those of PyTorch are in the one file that tries them.
"""

from __future__ import annotations

import ast
import re
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


#: A name of torch with an underscore, its private modules, and what a module of it keeps.
PRIVATE = re.compile(
    r"\btorch(\.\w+)*\._[a-z]|from torch\S* import .*\b_\w|from torch\S*\._\w|"
    r"\._(buffers|parameters|modules|forward_hooks|forward_pre_hooks)\b"
)


def test_no_source_but_one_names_a_private_part_of_torch() -> None:
    package = Path(itmkit.__file__).parent
    found = [
        f"{path.relative_to(package)}: {line}"
        for path in sorted(package.rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if PRIVATE.search(line)
    ]
    assert [one.partition(":")[0] for one in found] == ["nn/_internals.py"], found


@pytest.mark.parametrize(
    "line",
    [
        "from torch.utils._pytree import tree_map",
        "from torch.nn.modules.batchnorm import BatchNorm2d, _BatchNorm",
        "torch._foreach_lerp_(old, new, 0.1)",
        "module._buffers.update(kept)",
    ],
)
def test_private_parts_of_torch_are_found(line: str) -> None:
    assert PRIVATE.search(line)
