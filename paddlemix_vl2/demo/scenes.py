"""What a picture shows, before it is rendered: scenes, cards with text, bar charts, pairs of scenes.

Boxes are left, top, right, bottom in pixels, right and bottom exclusive. Makers take a numpy ``Generator``
and depend on nothing else.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from paddlemix_vl2.demo.lettering import letters
from paddlemix_vl2.demo.vocabulary import BACKGROUNDS, COLORS, FONTS, SHAPES, TEXT_COLORS, WORDS

Box = tuple[int, int, int, int]
Size = tuple[int, int]  # width, height

TILE = 84
_GAP = 3  # least distance between things and to the border, pixels
_MIN_FONT = 20
_SHIFT = 4  # pixels by which text may be off the middle of its place: anywhere takes far longer to learn
_LARGEST_VALUE = 9


@dataclass(frozen=True)
class Thing:
    """A shape in a scene. ``cell`` is the cell of the 3 x 3 grid, 0 to 8 row by row, that has its centre."""

    shape: str
    color: str
    cell: int
    box: Box


@dataclass(frozen=True)
class Scene:
    """Things in reading order, no two in one cell, no two of the same shape and colour.

    Attributes:
        grain: seed of what differs between pictures without a meaning: noise and slight shifts of colours.
    """

    size: Size
    background: tuple[int, int, int]
    things: tuple[Thing, ...]
    grain: int


@dataclass(frozen=True)
class TextItem:
    """A word or a number on a card; ``box`` is that of its ink."""

    text: str
    color: str
    font: str
    font_size: int
    box: Box

    @property
    def is_number(self) -> bool:
        return self.text.isdecimal()


@dataclass(frozen=True)
class TextCard:
    """Words and numbers in reading order, no two the same. ``grain`` as in :class:`Scene`."""

    size: Size
    background: tuple[int, int, int]
    items: tuple[TextItem, ...]
    grain: int

    @property
    def has_lines(self) -> bool:
        """Whether every item is a line of its own."""
        return all(a.box[3] <= b.box[1] for a, b in pairwise(self.items))


@dataclass(frozen=True)
class Bar:
    color: str
    value: int
    box: Box


@dataclass(frozen=True)
class Chart:
    """Bars from left to right, of distinct colours.

    Attributes:
        base: y of the axis below the bars; ``unit``: pixels per one of value.
    """

    size: Size
    background: tuple[int, int, int]
    bars: tuple[Bar, ...]
    base: int
    unit: int
    grain: int


@dataclass(frozen=True)
class Pair:
    """Two pictures of one thing each."""

    first: Scene
    second: Scene


Subject = Scene | TextCard | Chart | Pair


def pick(rng: np.random.Generator, options):
    """One of a sequence."""
    return options[int(rng.integers(len(options)))]


def pick_some(rng: np.random.Generator, options, count: int) -> list:
    """``count`` different ones of a sequence, in random order."""
    return [options[int(i)] for i in rng.permutation(len(options))[:count]]


def pick_weighted(rng: np.random.Generator, weights: dict):
    """One of the keys."""
    names, values = list(weights), np.cumsum(list(weights.values()))
    return names[int(np.searchsorted(values, rng.random() * values[-1], side="right"))]


def _grain(rng: np.random.Generator) -> int:
    return int(rng.integers(1 << 31))


# ---- scenes of shapes ----

# (width, height) -> weight, fewest and most things, their least and greatest side
_SCENE_SIZES = {
    (TILE, TILE): (0.76, (2, 3), (26, 36)),
    (2 * TILE, 2 * TILE): (0.1, (2, 4), (44, 72)),
    (2 * TILE, TILE): (0.07, (1, 2), (32, 50)),
    (TILE, 2 * TILE): (0.07, (1, 2), (32, 50)),
}
_SIDES_ALONE = (30, 56)


def make_scene(rng: np.random.Generator) -> Scene:
    """A scene of one to four things."""
    size = pick_weighted(rng, {size: row[0] for size, row in _SCENE_SIZES.items()})
    _, (fewest, most), _ = _SCENE_SIZES[size]
    # One thing is what a small picture shows best.
    count = 1 if size == (TILE, TILE) and rng.random() < 0.35 else int(rng.integers(fewest, most + 1))
    return scene_of(rng, size, _looks(rng, count))


def make_grid(rng: np.random.Generator) -> Scene:
    """A scene of five to nine things, each within its cell of the grid: what is where can only be seen there.
    For practice; evaluation asks about the scenes of :func:`make_scene`."""
    return _grid_of(rng, _looks(rng, int(rng.integers(5, 10))))


def make_color_grid(rng: np.random.Generator) -> Scene:
    """The same of four to seven things that differ in colour and place only. Nearly every picture has nearly
    every colour, so the set of colours does not show which is where."""
    shape = pick(rng, list(SHAPES))
    return _grid_of(rng, [(shape, color) for color in pick_some(rng, list(COLORS), int(rng.integers(4, 8)))])


def _grid_of(rng: np.random.Generator, looks: list[tuple[str, str]]) -> Scene:
    """Things of these (shape, colour) in as many cells of the grid."""
    length = TILE if rng.random() < 0.9 else 2 * TILE
    room = length // 3 - 2
    cells = sorted(pick_some(rng, range(9), len(looks)))
    things = []
    for cell, (shape, color) in zip(cells, looks, strict=True):
        side = int(rng.integers(room * 3 // 4, room))
        left, top = (
            third * length // 3 + 1 + int(rng.integers(room - side + 1)) for third in (cell % 3, cell // 3)
        )
        things.append(Thing(shape, color, cell, (left, top, left + side, top + side)))
    return Scene((length, length), pick(rng, BACKGROUNDS), tuple(things), _grain(rng))


def scene_of(rng: np.random.Generator, size: Size, looks: list[tuple[str, str]]) -> Scene:
    """A scene with things of these (shape, colour), anywhere; as large as leaves room for all."""
    sides = _SIDES_ALONE if len(looks) == 1 else _SCENE_SIZES[size][2]
    places = None
    while places is None:
        places = _places(rng, size, len(looks), sides)
    things = [
        Thing(shape, color, cell, box) for (shape, color), (cell, box) in zip(looks, places, strict=True)
    ]
    things.sort(key=lambda thing: thing.cell)
    return Scene(size, pick(rng, BACKGROUNDS), tuple(things), _grain(rng))


def _looks(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """Different pairs of shape and colour; now and then all of one shape or of one colour, to be counted."""
    shapes, colors = list(SHAPES), list(COLORS)
    kind = rng.random() if count <= len(shapes) else 1.0
    if kind < 0.2:
        shape = pick(rng, shapes)
        return [(shape, color) for color in pick_some(rng, colors, count)]
    if kind < 0.4:
        color = pick(rng, colors)
        return [(shape, color) for shape in pick_some(rng, shapes, count)]
    return pick_some(rng, [(shape, color) for shape in shapes for color in colors], count)


def _places(
    rng: np.random.Generator, size: Size, count: int, sides: tuple[int, int]
) -> list[tuple[int, Box]] | None:
    """Cells and boxes that keep apart; None where the random sizes do not allow it."""
    places: list[tuple[int, Box]] = []
    for cell in pick_some(rng, range(9), count):
        side = int(rng.integers(sides[0], sides[1] + 1))
        left = _start(rng, side, cell % 3, size[0])
        top = _start(rng, side, cell // 3, size[1])
        if left is None or top is None:
            return None
        box = (left, top, left + side, top + side)
        if any(_touch(box, other) for _, other in places):
            return None
        places.append((cell, box))
    return places


def _start(rng: np.random.Generator, side: int, third: int, length: int) -> int | None:
    """Where a side begins so that its middle is clearly inside a third of the length."""
    margin = length / 24
    low = max(third * length / 3 + margin - side / 2, _GAP)
    high = min((third + 1) * length / 3 - margin - side / 2, length - side - _GAP)
    return None if low > high else round(low + rng.random() * (high - low))


def _touch(a: Box, b: Box) -> bool:
    return a[0] < b[2] + _GAP and b[0] < a[2] + _GAP and a[1] < b[3] + _GAP and b[1] < a[3] + _GAP


def make_pair(rng: np.random.Generator) -> Pair:
    """Two scenes of one thing; shape and colour agree in half of the cases each."""
    first = (pick(rng, list(SHAPES)), pick(rng, list(COLORS)))
    second = [
        own if rng.random() < 0.5 else pick(rng, [name for name in names if name != own])
        for own, names in zip(first, (SHAPES, COLORS), strict=True)
    ]
    return Pair(scene_of(rng, (TILE, TILE), [first]), scene_of(rng, (TILE, TILE), [tuple(second)]))


# ---- cards with text ----

# (columns, rows) of tiles -> weight; every tile has a word or a number of its own, so that none is cut
_CARD_GRIDS = {(1, 1): 0.4, (2, 1): 0.2, (1, 2): 0.25, (1, 3): 0.1}
_WIDE_CARD = 0.05  # one large word or number over two tiles


def make_card(rng: np.random.Generator) -> TextCard:
    """A card of one to three words and numbers."""
    columns, rows = pick_weighted(rng, {**_CARD_GRIDS, (0, 0): _WIDE_CARD})
    width, height = TILE, TILE
    if not columns:
        columns, rows, width = 1, 1, 2 * TILE
    items: list[TextItem] = []
    for index in range(columns * rows):
        cell = (index % columns * width, index // columns * height, width, height)
        item = None
        while item is None or item.text in [other.text for other in items]:
            item = _make_item(rng, cell)
        items.append(item)
    size = (columns * width, rows * height)
    return TextCard(size, pick(rng, BACKGROUNDS), tuple(items), _grain(rng))


def make_long_card(rng: np.random.Generator) -> TextCard:
    """A card of more than one word or number: which is meant has to be looked for."""
    card = make_card(rng)
    while len(card.items) < 2:
        card = make_card(rng)
    return card


def _make_item(rng: np.random.Generator, cell: Box) -> TextItem | None:
    """A word or a number near the middle of ``cell`` (left, top, width, height); None if it does not fit."""
    text = pick(rng, WORDS) if rng.random() < 0.6 else str(int(rng.integers(10 ** int(rng.integers(1, 3)))))
    color, font = pick(rng, TEXT_COLORS), pick(rng, FONTS)
    left, top, width, height = cell
    # As large as fits, or a little smaller: a letter then covers one image token or more.
    for size in range(int(rng.integers(36, 57)), _MIN_FONT - 1, -1):
        ink = letters(text, font, size)
        if ink.width + 2 * _GAP <= width and ink.height + 2 * _GAP <= height:
            x = left + _near_middle(rng, width - ink.width)
            y = top + _near_middle(rng, height - ink.height)
            return TextItem(text, color, font, size, (x, y, x + ink.width, y + ink.height))
    return None


def _near_middle(rng: np.random.Generator, room: int) -> int:
    """Where to begin so that of ``room`` about as much is left over on both sides."""
    return int(np.clip(room // 2 + rng.integers(-_SHIFT, _SHIFT + 1), _GAP, room - _GAP))


# ---- bar charts ----


def make_chart(rng: np.random.Generator) -> Chart:
    """Two to four bars of the values 1 to 9; one of them is the tallest."""
    side = TILE if rng.random() < 0.8 else 2 * TILE
    count = int(rng.integers(2, 5))
    unit, margin = 8 * side // TILE, 6 * side // TILE
    base = margin + _LARGEST_VALUE * unit
    # Different values, so that there is one tallest and one shortest bar.
    values = pick_some(rng, range(1, _LARGEST_VALUE + 1), count)
    slot = (side - 2 * margin) / count
    bars = []
    for index, (color, value) in enumerate(zip(pick_some(rng, list(COLORS), count), values, strict=True)):
        width = round(slot * (0.5 + 0.25 * rng.random()))
        left = margin + round(slot * index + (slot - width) * (0.25 + 0.5 * rng.random()))
        bars.append(Bar(color, value, (left, base - value * unit, left + width, base)))
    return Chart((side, side), pick(rng, BACKGROUNDS), tuple(bars), base, unit, _grain(rng))
