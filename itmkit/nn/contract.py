"""What a system asks of an encoder of images, of captions, or of pairs of both."""

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


@runtime_checkable
class Fusion(Protocol):
    """An ``nn.Module`` that reads an image and a caption together.

    Called with ``(image_vector, image_tokens, image_mask, text_vector, text_tokens, text_mask,
    pairs=None)``, it gives two read-outs ``(P, dim)``, and by ``pair_score`` a score ``(P,)``. The
    rows of ``pairs`` ``(P, 2)`` are an image and a caption; None: row i of both.
    """

    dim: int

    def pair_score(
        self,
        image_vector: Tensor,
        image_tokens: Tensor,
        image_mask: Tensor | None,
        text_vector: Tensor,
        text_tokens: Tensor,
        text_mask: Tensor | None,
        *,
        pairs: Tensor | None = None,
    ) -> Tensor:
        """Scores ``(P,)``, at least fp32."""


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
