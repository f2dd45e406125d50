"""What a system asks of an encoder of images or of captions."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn

from itmkit.checks import InputError


class Tokens(NamedTuple):
    """What an encoder gives for a stack of images or captions; unpacks as ``tokens, mask``.

    Args:
        tokens: ``(B, N, D)`` one vector a region, grid cell or word.
        mask: ``(B, N)`` bool, True on real tokens; None where none is padded.
    """

    tokens: Tensor
    mask: Tensor | None = None


@runtime_checkable
class Encoder(Protocol):
    """An ``nn.Module`` that gives :class:`Tokens` of width ``dim``.

    An image encoder is called with ``(features, mask)``, the fields of
    :class:`itmkit.data.Images`; a text encoder with ``(ids, mask)``, those of
    :class:`itmkit.data.Texts`, or with ``(features, mask)`` where the data has ``text_features``.
    """

    dim: int


@runtime_checkable
class LevelsEncoder(Encoder, Protocol):
    """An encoder that gives a list of :class:`Tokens`, one a level, all of width ``dim``."""

    levels: int


def encoder_width(name: str, encoder: nn.Module) -> int:
    """The width of the tokens of an encoder.

    Args:
        name: of the argument, for the error.
        encoder: the module.

    Raises:
        InputError: if the module does not say its width as ``dim``.

    Example:
        >>> encoder_width("image_encoder", nn.Linear(2, 3))
        Traceback (most recent call last):
        itmkit.checks.InputError: image_encoder is a Linear without a width dim; expected an ...
    """
    if not isinstance(encoder, Encoder) or not isinstance(encoder.dim, int):
        raise InputError(
            f"{name} is a {type(encoder).__name__} without a width dim; expected an encoder as "
            "itmkit.nn.contract describes it"
        )
    return encoder.dim


def common_width(**encoders: nn.Module | None) -> int:
    """The width that all of some encoders have; those that are None are left out.

    Raises:
        InputError: if their widths differ, or one does not say it.
    """
    widths = {name: encoder_width(name, one) for name, one in encoders.items() if one is not None}
    if len(set(widths.values())) > 1:
        listed = ", ".join(f"{name}.dim {width}" for name, width in widths.items())
        raise InputError(f"the widths differ: {listed}; expected one")
    return next(iter(widths.values()))


def common_levels(**encoders: nn.Module) -> int:
    """The number of levels that all of some encoders have; 1 for an encoder that names none.

    Raises:
        InputError: if their numbers of levels differ.
    """
    levels = {
        name: one.levels if isinstance(one, LevelsEncoder) else 1 for name, one in encoders.items()
    }
    if len(set(levels.values())) > 1:
        listed = ", ".join(f"{name}.levels {count}" for name, count in levels.items())
        raise InputError(f"the levels differ: {listed}; expected one number")
    return next(iter(levels.values()))
