"""Image–text matching: the parts of a matcher, its losses, its metrics and whole systems."""

from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType

__version__ = "0.1.0"


def __getattr__(name: str) -> ModuleType:
    # itmkit.losses after a bare import of itmkit, which itself imports no torch
    if name in _submodules():
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_submodules()})


def _submodules() -> list[str]:
    return [module.name for module in iter_modules(__path__) if not module.name.startswith("_")]
