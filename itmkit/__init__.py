"""Image–text matching: the parts of a matcher, its losses, its metrics and whole systems."""

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from itmkit.retriever.loading import load
    from itmkit.retriever.retriever import Retriever

__all__ = ["Retriever", "load"]
__version__ = "0.2.0"


_OF_RETRIEVER = ("Retriever", "load")


def __getattr__(name: str) -> Any:
    # itmkit.losses or itmkit.load after a bare import of itmkit, which itself imports no torch
    if name in _OF_RETRIEVER:
        return getattr(import_module(f"{__name__}.retriever"), name)
    if name in _submodules():
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_OF_RETRIEVER, *_submodules()})


@cache  # jsonargparse looks for names in here hundreds of times
def _submodules() -> list[str]:
    return [module.name for module in iter_modules(__path__) if not module.name.startswith("_")]
