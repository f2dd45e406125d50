"""Draw why a caption and a picture have their score: one small picture a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from itmkit.checks import InputError, check_shape
from itmkit.extras import require_extra
from itmkit.systems.explanation import Explanation, TokenMap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

COLUMNS = 5
SIDE = 128  # pixels of a smooth map

# inches: of a panel with its title and the space beside it, and of the title of an explanation
_WIDTH, _HEIGHT, _HEADING = 1.75, 2.05, 0.65
_TITLE, _GAP = 0.35, 0.08

# Okabe and Ito's colours, which colour-blind readers tell apart
_ADDS, _TAKES, _LOOKS = "#d55e00", "#0072b2", "#009e73"
_STRONGEST = 0.8  # opacity
_LEAST_BOX = 0.02  # of the strongest: a weaker box is not drawn

Array = np.ndarray[Any, Any]


class Word(NamedTuple):
    """A word of a caption, or what is no word.

    Args:
        text: as it is shown.
        tokens: which tokens of the caption it has.
    """

    text: str
    tokens: list[int]


def caption_words(words: Sequence[str], owners: Sequence[int]) -> list[Word]:
    """The words of a caption with their tokens, and last the tokens that belong to none.

    Args:
        words: of the caption.
        owners: for every token the number of its word, -1 for those of no word.

    Example:
        >>> caption_words(["a", "dog"], [-1, 0, 1, 1, -1])[1:]
        [Word(text='dog', tokens=[2, 3]), Word(text='start, end', tokens=[0, 4])]
    """
    found = []
    for number in sorted(set(owners) - {-1}):
        text = words[number] if number < len(words) else f"word {number + 1}"
        found.append(Word(text, [i for i, owner in enumerate(owners) if owner == number]))
    special = [i for i, owner in enumerate(owners) if owner == -1]
    return found + ([Word("start, end", special)] if special else [])


def draw_explanations(
    explanations: Sequence[Explanation],
    picture: Array,
    words: Sequence[Word],
    boxes: Tensor | None = None,
    *,
    figure: Figure | None = None,
) -> tuple[Figure, Array]:
    """Draw explanations of one pair over its picture.

    Shares are orange where they add to the score and blue where they take from it, attention is
    green; the stronger, the more opaque. All words of an explanation have one scale, the picture of
    all words together its own.

    Args:
        explanations: what :meth:`itmkit.systems.Matcher.explain` gave.
        picture: ``(H, W, 3)`` uint8, the part of the picture that the model saw.
        words: of the caption.
        boxes: ``(N, 4)`` corners of the regions relative to the picture, where the tokens are no
            grid that the encoder knows.
        figure: to draw into, which gets its size and no layout engine; None: a new one of
            ``pyplot``.

    Returns:
        The figure and its axes, ``(rows, 5)``; those without a picture are switched off.

    Raises:
        InputError: matplotlib is not installed, or tokens are neither a grid nor have boxes.
    """
    require_extra("report", "matplotlib>=3.9")
    panels = [
        [(None, "")] + [(word, word.text) for word in (_all_of(words), *words)]
        for _ in explanations
    ]
    rows = [-(-len(own) // COLUMNS) for own in panels]
    if figure is None:
        from matplotlib import pyplot

        figure = pyplot.figure()
    figure.set_layout_engine("none")  # all places are known
    heights = [_height(count) for count in rows]
    figure.set_size_inches(_WIDTH * COLUMNS, sum(heights))
    parts = figure.subfigures(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    grey = _lightened_grey(picture)
    axes = [
        _draw_one(part, count, explanation, own, (picture, grey), boxes)
        for part, count, explanation, own in zip(parts, rows, explanations, panels, strict=True)
    ]
    return figure, np.concatenate(axes)


def _all_of(words: Sequence[Word]) -> Word:
    return Word("all words", [token for word in words for token in word.tokens])


def _draw_one(
    part: SubFigure,
    rows: int,
    explanation: Explanation,
    panels: Sequence[tuple[Word | None, str]],
    pictures: tuple[Array, Array],
    boxes: Tensor | None,
) -> Array:
    shares = explanation.kind == "shares"
    axes: Array = part.subplots(rows, COLUMNS, squeeze=False, gridspec_kw=_places(rows))
    maps = {
        text: [(_of_word(one, word, shares=shares), one.grid) for one in explanation.maps]
        for word, text in panels
        if word is not None
    }
    layers = {text: _layers(found, boxes) for text, found in maps.items()}
    scale = max((one.strongest for text, one in layers.items() if text != "all words"), default=0)
    top = 1 - _GAP / _height(rows)
    part.suptitle(_title(explanation), fontsize=9, x=0.01, y=top, ha="left", va="top")
    for axis, (word, text) in zip(axes.flat, panels, strict=False):
        axis.imshow(pictures[word is not None], extent=(0, 1, 1, 0), aspect="auto")
        axis.set_box_aspect(pictures[0].shape[0] / pictures[0].shape[1])
        if word is not None:
            total = sum(float(values.sum()) for values, _ in maps[text])
            title = f"{text}  {total:+.3f}" if shares else text
            axis.set_title(title, fontsize=8, y=1.0, parse_math=False)
            own = layers[text].strongest if text == "all words" else scale
            _overlay(axis, layers[text], own or 1.0, shares=shares)
    for axis in axes.flat:
        axis.set_axis_off()
    return axes


def _height(rows: int) -> float:
    """Inches of an explanation."""
    return _HEADING + rows * _HEIGHT - _TITLE + _GAP


def _places(rows: int) -> dict[str, float]:
    """Where the panels are; a layout engine would measure every title to find the same."""
    side, height = _GAP / 2 / (_WIDTH * COLUMNS), _height(rows)
    return {
        "left": side,
        "right": 1 - side,
        "bottom": _GAP / height,
        "top": 1 - _HEADING / height,
        "wspace": _GAP / (_WIDTH - _GAP),
        "hspace": _TITLE / (_HEIGHT - _TITLE),
    }


def _title(explanation: Explanation) -> str:
    if explanation.kind == "shares":
        return (
            f"Shares in the {explanation.title}, {explanation.score:.3f}: the words' numbers add "
            "up to it.\nOrange adds to it, blue takes from it."
        )
    return (
        f"Attention of the words, {explanation.title} {explanation.score:.3f}: where each word "
        "looks,\nnot a share of the score."
    )


class _Layers(NamedTuple):
    """What is drawn over a picture: a smooth map, and boxes with their values."""

    smooth: Array | None
    boxes: list[tuple[Array, float]]

    @property
    def strongest(self) -> float:
        smooth = 0.0 if self.smooth is None else float(np.abs(self.smooth).max())
        return max([smooth, *(abs(value) for _, value in self.boxes)])


def _of_word(own: TokenMap, word: Word, *, shares: bool) -> Tensor:
    """Values ``(N,)`` of the parts of the image for a word; of its tokens' attention the mean."""
    rows = [token for token in word.tokens if token < len(own.values)]
    chosen = own.values[rows]
    return chosen.sum(0) if shares or not rows else chosen.mean(0)


def _layers(maps: Sequence[tuple[Tensor, tuple[int, int] | None]], boxes: Tensor | None) -> _Layers:
    smooth: Array | None = None
    drawn: list[tuple[Array, float]] = []
    for values, grid in maps:
        grid = grid or _grid_of(boxes, len(values))
        if grid is not None:  # of every level a density, whatever its number of cells
            cells = values.reshape(1, 1, *grid) * len(values)
            large = F.interpolate(cells, (SIDE, SIDE), mode="bicubic", align_corners=False)
            smooth = large[0, 0].numpy() + (0 if smooth is None else smooth)
        elif boxes is None or len(boxes) != len(values):
            raise InputError(
                f"boxes is None for {len(values)} image tokens of no grid; expected boxes, or an "
                "image encoder with grid (rows, columns)"
            )
        else:
            drawn += list(zip(boxes.numpy(), values.tolist(), strict=True))
    return _Layers(smooth, drawn)


def _grid_of(boxes: Tensor | None, count: int) -> tuple[int, int] | None:
    """Rows and columns of boxes that are the cells of a grid, row by row."""
    if boxes is None or len(boxes) != count:
        return None
    from itmkit.data.feature_file import grid_boxes

    check_shape((count, 4), boxes=boxes)
    columns = int((boxes[:, 1] == boxes[0, 1]).sum())
    rows = count // columns
    same = rows * columns == count and grid_boxes(rows, columns).allclose(boxes.float(), atol=1e-4)
    return (rows, columns) if same else None


def _overlay(axis: Axes, layers: _Layers, scale: float, *, shares: bool) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    adds = _ADDS if shares else _LOOKS
    if layers.smooth is not None:
        strength = np.clip(layers.smooth / scale, -1, 1)
        colours = np.where((strength > 0)[..., None], to_rgba(adds), to_rgba(_TAKES))
        colours[..., 3] = np.abs(strength) * _STRONGEST
        axis.imshow(colours, extent=(0, 1, 1, 0), aspect="auto", interpolation="bilinear")
    for (x1, y1, x2, y2), value in sorted(layers.boxes, key=lambda one: abs(one[1])):
        share = min(abs(value) / scale, 1)
        if share > _LEAST_BOX:
            colour = adds if value > 0 else _TAKES
            axis.add_patch(
                Rectangle(
                    (x1, y1),
                    x2 - x1,
                    y2 - y1,
                    facecolor=to_rgba(colour, 0.5 * share),
                    edgecolor=to_rgba(colour, share),
                    linewidth=0.5 + 2 * share,
                )
            )
    axis.set(xlim=(0, 1), ylim=(1, 0))


def _lightened_grey(picture: Array) -> Array:
    """The picture without colour and with less contrast, so that maps stand out."""
    light = torch.from_numpy(picture.astype(np.float32)) @ torch.tensor([0.299, 0.587, 0.114])
    grey = (0.6 * light + 90).clamp(0, 255).to(torch.uint8).numpy()
    return np.repeat(grey[..., None], 3, axis=2)
