"""Small painted worlds: scenes of coloured shapes, sentences about them, and which are true.

A scene holds two to four things on a 3 × 3 layout. No two things of a scene share a shape or a
colour, so swapping the two colours of a sentence that is true of a scene makes it false.
Everything here is a pure function of its random generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 85, 225),
    "yellow": (240, 220, 50),
    "purple": (145, 50, 175),
    "orange": (245, 135, 25),
    "cyan": (65, 215, 225),
    "white": (250, 250, 250),
}
COLOUR_NAMES = tuple(COLOURS)
SIZES = ("small", "large")
NUMBERS = {2: "two", 3: "three", 4: "four"}  # of the things of a scene
GRID = 3  # a scene is laid out on GRID x GRID cells
MAX_THINGS = 4
RADIUS = (0.1, 0.15)  # of a small and of a large thing, relative to the picture
OVERLAPPING_RADIUS = (0.11, 0.17)
OVERLAPPING_PITCH = 0.145  # of the cells, so that neighbours overlap; else 1 / GRID
JITTER = 0.015  # how far a thing strays from the middle of its cell; never into another column

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Thing:
    """One thing of a scene; shape, colour and size index SHAPES, COLOUR_NAMES and SIZES.

    The cells of an overlapping one are closer together.
    """

    shape: int
    colour: int
    size: int
    column: int
    row: int
    shift: tuple[float, float] = (0.0, 0.0)
    overlapping: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Corners x1, y1, x2, y2 relative to the picture."""
        if self.overlapping:
            middle = (GRID - 1) / 2
            x = 0.5 + (self.column - middle) * OVERLAPPING_PITCH + self.shift[0]
            y = 0.5 + (self.row - middle) * OVERLAPPING_PITCH + self.shift[1]
            r = OVERLAPPING_RADIUS[self.size]
        else:
            x = (self.column + 0.5) / GRID + self.shift[0]
            y = (self.row + 0.5) / GRID + self.shift[1]
            r = RADIUS[self.size]
        return x - r, y - r, x + r, y + r


Scene = tuple[Thing, ...]


@dataclass(frozen=True)
class Sentence:
    """A caption and what it claims.

    Args:
        text: the words.
        mentions: (colour, shape, size) of every thing named; size is -1 where it is left open.
        orders: (first, second, axis) triples: mention ``first`` stands left of (axis 0) or
            above (axis 1) mention ``second``.
        count: how many things there are in all; None where that is left open.
    """

    text: str
    mentions: tuple[tuple[int, int, int], ...]
    orders: tuple[tuple[int, int, int], ...] = ()
    count: int | None = None

    def holds(self, scene: Scene) -> bool:
        """Whether the sentence is true of the scene.

        Example:
            >>> scene = (Thing(0, 0, 1, column=0, row=1), Thing(1, 2, 0, column=2, row=1))
            >>> red_circle, blue_square = (0, 0, -1), (2, 1, -1)
            >>> Sentence("", (red_circle, blue_square), ((0, 1, 0),)).holds(scene)
            True
            >>> Sentence("", (blue_square, red_circle), ((0, 1, 0),)).holds(scene)
            False
        """
        if self.count not in (None, len(scene)):
            return False
        found = []
        for colour, shape, size in self.mentions:
            named = [t for t in scene if t.colour == colour and t.shape == shape]
            if not named or size not in (-1, named[0].size):
                return False
            found.append((named[0].column, named[0].row))
        return all(found[a][axis] < found[b][axis] for a, b, axis in self.orders)


def random_scene(rng: np.random.Generator) -> Scene:
    """Two to four things in different cells, all of different shapes and colours."""
    count = int(rng.integers(2, MAX_THINGS + 1))
    shapes = rng.permutation(len(SHAPES))[:count].tolist()
    colours = rng.permutation(len(COLOUR_NAMES))[:count].tolist()
    cells = rng.permutation(GRID * GRID)[:count].tolist()
    sizes = rng.integers(0, 2, count).tolist()
    return tuple(
        Thing(shape, colour, size, cell % GRID, cell // GRID)
        for shape, colour, size, cell in zip(shapes, colours, sizes, cells, strict=True)
    )


def shift_things(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene with every thing moved a little inside its cell."""
    shifts = rng.uniform(-JITTER, JITTER, (len(scene), 2)).tolist()
    return tuple(replace(t, shift=(x, y)) for t, (x, y) in zip(scene, shifts, strict=True))


def overlap_things(scene: Scene, rng: np.random.Generator) -> Scene:
    """The same scene with its cells closer together, somewhere in the picture."""
    room = 0.5 - (GRID - 1) / 2 * OVERLAPPING_PITCH - max(OVERLAPPING_RADIUS) - JITTER
    x, y = rng.uniform(-room, room, 2).tolist()
    return tuple(
        replace(t, shift=(t.shift[0] + x, t.shift[1] + y), overlapping=True) for t in scene
    )


def swap_colours(scene: Scene, a: int, b: int) -> Scene:
    """The same scene with the colours of two things exchanged."""
    return _swap(scene, a, b, "colour")


def swap_places(scene: Scene, a: int, b: int) -> Scene:
    """The same scene with the places of two things exchanged."""
    return _swap(scene, a, b, "column", "row")


def _swap(scene: Scene, a: int, b: int, *names: str) -> Scene:
    things = list(scene)
    things[a] = replace(scene[a], **{n: getattr(scene[b], n) for n in names})
    things[b] = replace(scene[b], **{n: getattr(scene[a], n) for n in names})
    return tuple(things)


def signature(scene: Scene) -> bytes:
    """What a scene keeps when its things swap colours or places: the same for all its siblings."""
    kinds = sorted((t.shape, t.size) for t in scene)
    colours = sorted(t.colour for t in scene)
    cells = sorted(t.row * GRID + t.column for t in scene)
    return repr((kinds, colours, cells)).encode()


# ---------------------------------------------------------------------------------- sentences

_ORDERS = {  # (axis, the first mention is the lesser) -> phrases
    (0, True): ("to the left of", "left of"),
    (0, False): ("to the right of", "right of"),
    (1, True): ("above", "over"),
    (1, False): ("below", "under"),
}


def sentences(
    scene: Scene, count: int, rng: np.random.Generator, *, counts: bool = False
) -> list[Sentence]:
    """``count`` different true sentences about a scene, each naming at least two of its things.

    With ``counts`` every other one begins with the number of all things.
    """
    found: dict[str, Sentence] = {}
    while len(found) < count:
        sentence = _sentence(scene, rng)
        if counts and len(found) % 2 == 0:
            text = f"{NUMBERS[len(scene)]} things, {sentence.text}"
            sentence = replace(sentence, text=text, count=len(scene))
        found.setdefault(sentence.text, sentence)
    return list(found.values())


def _sentence(scene: Scene, rng: np.random.Generator) -> Sentence:
    order = rng.permutation(len(scene)).tolist()
    things = [scene[i] for i in order]
    draw = rng.random(4)
    named = things[: 3 if len(things) > 2 and draw[0] < 0.6 else 2]
    mentions = tuple((t.colour, t.shape, t.size if draw[1] < 0.7 else -1) for t in named)
    phrases = [_phrase(*mention) for mention in mentions]
    rest = f", with {phrases[2]}" if len(named) > 2 else ""
    pair = phrases[:2]

    axes = [axis for axis in (0, 1) if _place(named[0])[axis] != _place(named[1])[axis]]
    if draw[2] < 0.2:  # a list: no relation
        listed = ", ".join(phrases[:-1]) + " and " + phrases[-1]
        return Sentence(("a picture of " if draw[3] < 0.5 else "") + listed, mentions)
    if len(axes) == 2 and draw[2] < 0.5:  # a diagonal
        words, orders = zip(*(_relate(named, axis, rng) for axis in (1, 0)), strict=True)
        text = f"{pair[0]} {words[0]} and {words[1]} {pair[1]}{rest}"
        return Sentence(text, mentions, orders)
    words_, order_ = _relate(named, axes[int(rng.integers(len(axes)))], rng)
    opening, middle = (("there is ", ""), ("", "is "), ("", "sits "))[int(draw[3] * 3)]
    return Sentence(f"{opening}{pair[0]} {middle}{words_} {pair[1]}{rest}", mentions, (order_,))


def _phrase(colour: int, shape: int, size: int) -> str:
    words = [SIZES[size]] if size >= 0 else []
    words += [COLOUR_NAMES[colour], SHAPES[shape]]
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def _place(thing: Thing) -> tuple[int, int]:
    return thing.column, thing.row


def _relate(
    named: Sequence[Thing], axis: int, rng: np.random.Generator
) -> tuple[str, tuple[int, int, int]]:
    """Words for how the first thing stands to the second along an axis, and the claim."""
    lesser = _place(named[0])[axis] < _place(named[1])[axis]
    words = _ORDERS[axis, lesser]
    return words[int(rng.integers(len(words)))], (0, 1, axis) if lesser else (1, 0, axis)


VOCABULARY = tuple(
    sorted(
        {*SHAPES, *COLOUR_NAMES, *SIZES}
        | {word for words in _ORDERS.values() for phrase in words for word in phrase.split()}
        | set("a an and is of picture sits there with".split())
    )
)


COUNT_WORDS = (*NUMBERS.values(), "things")


def relevance(scenes: Sequence[Scene], captions: Sequence[Sentence]) -> NDArray[np.bool_]:
    """Which sentence is true of which scene, exactly, for all pairs at once.

    Returns:
        ``(len(scenes), len(captions))`` bool; the same as ``caption.holds(scene)`` pair by pair.
    """
    # A scene has one thing of a colour at most: four tables tell all about it.
    table = np.full((4, len(scenes), len(COLOUR_NAMES)), -1, dtype=np.int8)
    for n, scene in enumerate(scenes):
        for t in scene:
            table[:, n, t.colour] = t.shape, t.size, t.column, t.row
    true = np.ones((len(scenes), len(captions)), dtype=bool)
    for k in range(max((len(c.mentions) for c in captions), default=0)):
        rows = np.array([m for m, c in enumerate(captions) if len(c.mentions) > k])
        colour, shape, size = np.array([captions[m].mentions[k] for m in rows]).T
        true[:, rows] &= table[0][:, colour] == shape
        true[:, rows] &= (size == -1) | (table[1][:, colour] == size)
    claims = [
        (m, c.mentions[a][0], c.mentions[b][0], axis)
        for m, c in enumerate(captions)
        for a, b, axis in c.orders
    ]
    for m, first, second, axis in claims:
        true[:, m] &= table[2 + axis][:, first] < table[2 + axis][:, second]
    counted = [m for m, c in enumerate(captions) if c.count is not None]
    sizes = np.array([len(scene) for scene in scenes])
    true[:, counted] &= sizes[:, None] == np.array([captions[m].count for m in counted])
    return true


# ------------------------------------------------------------------------------------ painting


def paint(scene: Scene, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene as a ``(size, size, 3)`` picture, smooth-edged, on textured ground.

    Of things that overlap, the one whose cell is nearer to the middle is in front: so something is
    seen of each.
    """
    picture = _ground(size, rng)
    for thing in sorted(scene, key=_nearness):
        x1, y1, x2, y2 = (v * size for v in thing.box)
        left, top = max(int(x1) - 1, 0), max(int(y1) - 1, 0)
        right, bottom = min(int(x2) + 2, size), min(int(y2) + 2, size)
        radius = (x2 - x1) / 2
        x = (np.arange(left, right) + 0.5 - (x1 + x2) / 2)[None, :]
        y = (np.arange(top, bottom) + 0.5 - (y1 + y2) / 2)[:, None]
        cover = np.clip(0.5 - _distance(SHAPES[thing.shape], x, y, radius), 0, 1)[..., None]
        paint_ = np.array(COLOURS[COLOUR_NAMES[thing.colour]]) + rng.normal(0, 8, 3)
        window = picture[top:bottom, left:right]
        window += cover * (paint_ - window)
    return np.clip(picture, 0, 255).astype(np.uint8)


def _nearness(thing: Thing) -> int:
    """Of a thing that may overlap with others, how near it is to the middle of the layout."""
    middle = GRID // 2
    away = abs(thing.column - middle) + abs(thing.row - middle)
    return -away if thing.overlapping else 0


def _ground(size: int, rng: np.random.Generator) -> Floats:
    """Dim, dull, blotchy and grainy: no two alike."""
    coarse = rng.normal(0, 18, (6, 6))
    steps = np.linspace(0, 5, size)
    blend = np.maximum(0, 1 - np.abs(steps[:, None] - np.arange(6)))  # linear interpolation
    blotches = blend @ coarse @ blend.T
    tint = 85 + rng.normal(0, 14) + rng.normal(0, 6, 3)
    ground: Floats = blotches[..., None] + rng.normal(0, 5, (size, size, 1)) + tint
    return ground


def _distance(shape: str, x: Floats, y: Floats, r: float) -> Floats:
    """About how far, in pixels, a point lies outside the outline (negative inside)."""
    found: Floats
    if shape == "circle":
        found = np.hypot(x, y) - r
    elif shape == "ring":
        found = np.abs(np.hypot(x, y) - 0.72 * r) - 0.28 * r
    elif shape == "square":
        found = np.maximum(np.abs(x), np.abs(y)) - 0.88 * r
    elif shape == "diamond":
        found = (np.abs(x) + np.abs(y) - 1.08 * r) / 2**0.5
    elif shape == "triangle":  # point up
        found = np.maximum((2 * np.abs(x) - y - r) / 5**0.5, y - 0.85 * r)
    else:  # a cross
        bar = 0.3 * r
        upright = np.maximum(np.abs(x) - bar, np.abs(y) - r)
        found = np.minimum(upright, np.maximum(np.abs(x) - r, np.abs(y) - bar))
    return found
