"""Extras: declared in one place, and a missing one is named in one line."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from itmkit.checks import InputError
from itmkit.extras import require_extra

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]


def calls() -> Iterator[tuple[str, list[str]]]:
    """Arguments of each ``require_extra`` of the package and its examples."""
    for folder in ("itmkit", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "require_extra":
                    extra, *requirements = (ast.literal_eval(one) for one in node.args)
                    yield extra, requirements


def test_what_is_required_is_declared() -> None:
    for extra, requirements in calls():
        declared = {one.name: one.specifier for one in map(Requirement, EXTRAS[extra])}
        for one in map(Requirement, requirements):
            assert one.name in declared, f"{one.name} is not in the extra {extra}"
            assert not one.specifier or one.specifier == declared[one.name], one


def test_all_has_every_extra() -> None:
    (whole,) = map(Requirement, EXTRAS["all"])
    assert (whole.name, whole.extras) == ("itmkit", set(EXTRAS) - {"all"})


def test_tests_of_extras_have_every_package() -> None:
    """The dependency group ``extras`` is what ``make test-extras`` installs."""
    group = set(PROJECT["dependency-groups"]["extras"])
    lacking = {one for name, needs in EXTRAS.items() if name != "all" for one in needs} - group
    assert not lacking, "add them to the dependency group extras"


def test_error_of_a_missing_package_names_the_extra() -> None:
    with pytest.raises(InputError, match=r"^no-such is not installed: pip install 'itmkit\[app\]'"):
        require_extra("app", "numpy", "no-such>=1")


def test_error_of_an_old_package_names_the_version() -> None:
    with pytest.raises(InputError, match=r"^numpy is [\d.]+; expected >=99: pip install 'itmkit"):
        require_extra("app", "numpy>=99")


def test_a_version_before_a_release_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("itmkit.extras.version", lambda name: "2.0.dev1")
    require_extra("lora", "peft>=1")
