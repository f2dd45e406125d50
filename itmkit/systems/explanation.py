"""What each word and each part of the image has to do with the score of one pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from itmkit.checks import InputError
from itmkit.retrieval import Encoding
from itmkit.retrieval.encoding import check_encodings


class TokenMap(NamedTuple):
    """A value for every token of the caption and every token of the image.

    Args:
        values: ``(L, N)`` fp32 on the CPU; zero on padding.
        grid: rows and columns of the image tokens, where they are the cells of a grid, row by row;
            None for regions.
    """

    values: Tensor
    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Explanation:
    """How the tokens of a caption and of an image take part in the score of the pair.

    Args:
        kind: ``"shares"``: the values of all maps add up to ``score``, exactly but for rounding;
            ``"attention"``: how much each word looks at each part of the image, which says where a
            model looks and not how the score is made.
        title: what the values are of.
        maps: one map a level of the encoders.
        score: of the pair, by the part of the model that is explained.
    """

    kind: Literal["shares", "attention"]
    title: str
    maps: list[TokenMap]
    score: float


def token_maps(values: Sequence[Tensor], image_encoder: nn.Module) -> list[TokenMap]:
    """Maps of a pair, one a level, with the grids that the image encoder knows.

    Args:
        values: ``(L, N)`` of each level.
        image_encoder: with an attribute ``grid`` (rows, columns), or ``grids``, one a level; the
            ``encoder`` in it may have them. Without, or where the numbers do not fit, the tokens
            are regions.
    """
    owner: Any = getattr(image_encoder, "encoder", image_encoder)
    grids = getattr(owner, "grids", None) or [getattr(owner, "grid", None)]
    if len(grids) != len(values):
        grids = [grids[0]] * len(values)
    maps = []
    for own, grid in zip(values, grids, strict=True):
        fits = grid is not None and grid[0] * grid[1] == own.shape[1]
        maps.append(TokenMap(own.float().cpu(), tuple(grid) if fits else None))
    return maps


def check_pair(image: Encoding, text: Encoding) -> None:
    """Raise unless these are one encoded image and one encoded caption.

    Raises:
        InputError: with the number of rows.
    """
    check_encodings(images=image, texts=text)
    for name, side in (("image", image), ("text", text)):
        if len(side) != 1:
            raise InputError(f"{name} has {len(side)} rows; expected 1")
