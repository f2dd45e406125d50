"""The submodules that a callback is given by name."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from torch import nn

from itmkit.checks import InputError


def check_names(submodules: Sequence[str]) -> list[str]:
    """The names of submodules as a list.

    Raises:
        InputError: for one name without a list, or an empty list.
    """
    if isinstance(submodules, str) or not submodules:
        raise InputError(f"submodules is {submodules!r}; expected a list of names")
    return list(submodules)


def find_submodule(owner: nn.Module, name: str) -> nn.Module:
    """The submodule of a dotted name.

    Raises:
        InputError: if there is none.
    """
    with suppress(AttributeError):
        if name:  # the owner itself is none of its submodules
            return owner.get_submodule(name)
    known = ", ".join(part for part, _ in owner.named_children())
    kind = type(owner).__name__
    raise InputError(f"submodules has {name!r}; expected a submodule of {kind}, which has {known}")
