"""Arguments of a few choices: a wrong one is an error when the object is made."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

import pytest
from tiny_matcher import TinyDataset

from itmkit.checks import InputError
from itmkit.nn import BagOfWords, BiGRU

PACKAGES = ("callbacks", "data", "losses", "metrics", "nn", "retrieval", "systems")
DIM = 8
ENCODERS = {"image_encoder": BagOfWords(9, DIM), "text_encoder": BiGRU(9, DIM, DIM)}
# The other arguments that a class needs; one that is not here is made without any.
NEEDED: dict[str, dict[str, Any]] = {
    "DAIM": ENCODERS,
    "FreezeUntil": {"submodules": ["encoder"]},
    "GuidedPooling": {"dim": DIM, "num_tokens": 3},
    "ImageTextData": {"dataset": TinyDataset},
    "MATE": ENCODERS,
    "RefinedSimilarity": {"dim": DIM},
    "TVRN": ENCODERS,
}
# Abstract bases, of which the systems and losses above are made; and what only the data module
# or a system makes, which has checked.
BASES = {
    "EvaluationImages",
    "Explanation",
    "HingeLoss",
    "Items",
    "LocalMatcher",
    "Matcher",
    "ScoreLoss",
    "TrainingPairs",
}


def choices(annotation: Any) -> tuple[Any, ...]:
    """What a ``Literal`` allows, also one in a union."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for part in get_args(annotation) for value in choices(part))


def parameters(one: Any) -> list[inspect.Parameter]:
    """Of the constructor of a class, and of those of its bases that it hands ``**kwargs`` on to."""
    own: list[inspect.Parameter] = []
    for base in one.__mro__:
        if "__init__" in vars(base) and base.__module__.startswith("itmkit."):
            more = list(inspect.signature(base, eval_str=True).parameters.values())
            own += [one for one in more if one.name not in {known.name for known in own}]
            if all(one.kind != one.VAR_KEYWORD for one in more):
                break
    return own


def found() -> Iterator[Any]:
    """Every public class with an argument of a few choices, and the argument."""
    for package in PACKAGES:
        root = import_module(f"itmkit.{package}")
        for module in pkgutil.walk_packages(root.__path__, f"{root.__name__}."):
            for name, one in sorted(vars(import_module(module.name)).items()):
                if not inspect.isclass(one) or one.__module__ != module.name:
                    continue
                maker = next(base for base in one.__mro__ if "__init__" in vars(base))
                inherited = not maker.__module__.startswith("itmkit.")
                if name.startswith("_") or name in BASES or inherited:
                    continue
                for parameter in parameters(one):
                    if choices(parameter.annotation):
                        yield pytest.param(one, parameter.name, id=f"{name}-{parameter.name}")


@pytest.mark.parametrize(("one", "name"), list(found()))
def test_wrong_choice(one: Any, name: str) -> None:
    with pytest.raises(InputError, match=f"^{name} is 'wrong'; expected one of "):
        one(**NEEDED.get(one.__name__, {}) | {name: "wrong"})


def test_all_are_found() -> None:
    pairs = {(param.values[0].__name__, param.values[1]) for param in found()}
    assert {
        ("DAIM", "warmup_unit"),
        ("MATE", "lr_scheduler_interval"),
        ("FreezeUntil", "unit"),
        ("TripletLoss", "negatives"),
        ("ImageTextData", "on_error"),
        ("CrossAttentionSimilarity", "direction"),
    } <= pairs
