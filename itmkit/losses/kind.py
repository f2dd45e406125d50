"""What a loss is called with, read off the arguments of its ``forward``."""

from __future__ import annotations

import inspect
from typing import Literal, get_args

from torch import nn

from itmkit.checks import InputError, type_of

#: ``scores``: ``(scores, positives)``; ``vectors``: ``(image, text, image_ids)``; ``teacher``:
#: ``(image, text, teacher_image, teacher_text, …)``
Kind = Literal["scores", "vectors", "teacher"]

_EXPECTED: dict[Kind, tuple[str, str]] = {
    "scores": ("(scores, positives)", "InfoNCELoss"),
    "vectors": ("(image, text, image_ids)", "HECTLoss, or a VectorLoss of any loss of scores"),
    "teacher": ("(image, text, teacher_image, teacher_text, …)", "MomentumDistillationLoss"),
}


def check_kind(*kinds: Kind, **losses: nn.Module) -> Kind:
    """The kind of a loss, of those that are expected.

    Args:
        *kinds: the expected ones; none: any.
        **losses: the loss, by the name of the argument.

    Raises:
        InputError: for a loss of no such kind.

    Example:
        >>> from itmkit.losses import HECTLoss
        >>> check_kind("scores", loss=HECTLoss())
        Traceback (most recent call last):
        itmkit.checks.InputError: loss is a HECTLoss, which takes (image, text, image_ids);
            expected a loss of (scores, positives), such as InfoNCELoss
    """
    kinds = kinds or get_args(Kind)
    ((name, loss),) = losses.items()
    forms = [_EXPECTED[kind] for kind in kinds]
    expected = " or ".join(f"{form}, such as {example}" for form, example in forms)
    if not isinstance(loss, nn.Module):
        raise InputError(f"{name} is {_named(loss)}; expected a loss of {expected}")
    arguments = list(inspect.signature(loss.forward).parameters)
    found: Kind | None = None
    if arguments[:1] == ["scores"]:
        found = "scores"
    elif arguments[:3] == ["image", "text", "teacher_image"]:
        found = "teacher"
    elif arguments[:2] == ["image", "text"]:
        found = "vectors"
    if found is None or found not in kinds:
        raise InputError(
            f"{name} is a {type(loss).__name__}, which takes ({', '.join(arguments)}); expected a "
            f"loss of {expected}"
        )
    return found


def _named(given: object) -> str:
    """What is no module, for an error: a class is one that was not called."""
    if isinstance(given, type):
        return f"the class {given.__name__}, not {given.__name__}()"
    return type_of(given)
