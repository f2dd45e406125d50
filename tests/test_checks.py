"""Checks that many places share say where a value is and what it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import itmkit
from itmkit.checks import InputError, check_count, check_dropout, check_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_error_not_finite(dtype, value):
    largest = torch.full((3, 4), torch.finfo(dtype).max, dtype=dtype)
    check_finite(largest, str)  # a sum would overflow
    check_finite(largest[:0], str)
    largest[2, 1] = value
    with pytest.raises(InputError, match=rf"^row 7, 1 is {value}; expected a finite number$"):
        check_finite(largest, lambda row, column: f"row {5 + row}, {column}")
    with pytest.raises(InputError, match=rf"^pair 1 is {value}; expected a finite number$"):
        check_finite(largest[2], lambda place: f"pair {place}")


def test_error_dropout():
    check_dropout(dropout=0, drop=0.99)
    for value in (1.0, -0.1, torch.nan):
        with pytest.raises(InputError, match=rf"^drop is {value}; expected a number in \[0, 1\)$"):
            check_dropout(dropout=0.5, drop=value)


def test_error_count():
    check_count(k=1, n=np.int64(3))
    check_count(0, k=0)
    with pytest.raises(InputError, match=r"^k is 0; expected 1 or more$"):
        check_count(n=1, k=0)
    with pytest.raises(InputError, match=r"^k is 2; expected 3 or more$"):
        check_count(3, k=2)
    for value in ("2", 2.0, True, None, torch.ones(2)):
        with pytest.raises(InputError, match=r"^k is .+; expected a whole number, 0 or more$"):
            check_count(0, k=value)


OTHER_PHRASING = re.compile(r"\bmust\b|\bgot\b|: expected")


def messages(source: str) -> Iterator[str]:
    """The fixed parts of each message of an InputError that a source raises."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "InputError":
            constants = [part for part in ast.walk(node) if isinstance(part, ast.Constant)]
            yield "…".join(str(constant.value) for constant in constants)


@pytest.mark.parametrize(
    "package",
    ["callbacks", "data", "losses", "metrics", "nn", "retrieval", "retriever", "runs", "systems"],
)
def test_errors_say_what_a_value_is_and_what_was_expected(package: str) -> None:
    found = [
        message
        for path in sorted((Path(itmkit.__file__).parent / package).rglob("*.py"))
        for message in messages(path.read_text(encoding="utf-8"))
    ]
    assert found
    assert [message for message in found if OTHER_PHRASING.search(message)] == []


@pytest.mark.parametrize("words", ["must be 1", "got 2", "dim: expected 3"])
def test_other_phrasings_are_found(words: str) -> None:
    assert OTHER_PHRASING.search(next(messages(f"raise InputError(f'dim {words} {{dim}}')")))
