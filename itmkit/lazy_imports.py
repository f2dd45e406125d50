"""Imports of packages that import others which they seldom need."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType


class _WandbWhenUsed:
    """A finder of wandb alone, whose code runs when something asks the module for anything."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "wandb" else None
        if spec and spec.loader:
            spec.loader = LazyLoader(spec.loader)
        return spec


def import_timm() -> ModuleType:
    """Import timm; wandb, which timm imports where it is installed, is loaded when it is used.

    wandb takes longer to import than timm itself, which uses it in one function.
    """
    if "timm" not in sys.modules:
        sys.meta_path.insert(0, _WandbWhenUsed)
        try:
            import timm.utils
        finally:
            sys.meta_path.remove(_WandbWhenUsed)
    import timm

    return timm
