"""Packages that only some parts need: the extras ``pip install 'itmkit[NAME]'``."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

from itmkit.checks import InputError


def require_extra(extra: str, *requirements: str) -> None:
    """Raise unless the packages of an extra are installed; called before they are imported.

    Args:
        extra: its name, as ``[project.optional-dependencies]`` of pyproject.toml has it.
        requirements: packages of it by their names on PyPI, with the versions that will do.

    Raises:
        InputError: one is missing or of another version; it names the extra.

    Example:
        >>> require_extra("lora", "no-such-package>=0.18")
        Traceback (most recent call last):
        itmkit.checks.InputError: no-such-package is not installed: pip install 'itmkit[lora]'
    """
    install = f"pip install 'itmkit[{extra}]'"
    for requirement in map(Requirement, requirements):
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            raise InputError(f"{requirement.name} is not installed: {install}") from None
        if not requirement.specifier.contains(found, prereleases=True):
            raise InputError(
                f"{requirement.name} is {found}; expected {requirement.specifier}: {install}"
            )
