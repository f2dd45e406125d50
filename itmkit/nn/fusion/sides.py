"""What the fusion encoders ask of their inputs: images, captions, and which are a pair."""

from __future__ import annotations

import torch
from torch import Tensor

from itmkit.checks import InputError, check_shape, type_of
from itmkit.nn.functional import check_tokens

#: one side of the pairs: vectors ``(B, D)``, tokens ``(B, N, D)``, mask ``(B, N)`` or None
Side = tuple[Tensor, Tensor, Tensor | None]


def check_sides(dim: int, images: Side, texts: Side, pairs: Tensor | None) -> None:
    """Raise unless these are images and captions of width ``dim``, and rows of them.

    Raises:
        InputError: with the name and the shape of what does not fit.
    """
    image_vector, image_tokens, image_mask = images
    text_vector, text_tokens, text_mask = texts
    check_tokens("image_tokens", image_tokens, dim, image_mask, "image_mask")
    check_tokens("text_tokens", text_tokens, dim, text_mask, "text_mask")
    check_shape((image_tokens.shape[0], dim), image_vector=image_vector)
    if pairs is None and text_tokens.shape[0] != image_tokens.shape[0]:
        raise InputError(
            f"text_tokens has {text_tokens.shape[0]} rows; expected {image_tokens.shape[0]}, one a "
            "pair as image_tokens"
        )
    check_shape((text_tokens.shape[0], dim), text_vector=text_vector)
    if pairs is not None and (pairs.dtype != torch.int64 or pairs.shape[1:] != (2,)):
        raise InputError(
            f"pairs is {type_of(pairs)} of the shape {tuple(pairs.shape)}; expected int64 (P, 2)"
        )


def pair_rows(pairs: Tensor | None) -> tuple[Tensor | slice, Tensor | slice]:
    """The image row and the caption row of each pair."""
    if pairs is None:
        return slice(None), slice(None)
    return pairs[:, 0], pairs[:, 1]
