"""From what a picture shows to the picture."""

from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw

from paddlemix_vl2.demo.lettering import letters
from paddlemix_vl2.demo.scenes import Chart, Pair, Scene, Subject, TextCard, TextItem
from paddlemix_vl2.demo.vocabulary import COLOR_VALUES

_FINER = 4  # masks of shapes are rendered so many times larger and then reduced: smooth edges
_NOISE = 3  # levels by which a pixel of the background may be off
_TINT = 5  # levels by which a picture's background and the colour of a thing may be off
_GRID, _MIDDLE, _AXIS = (206, 206, 210), (160, 160, 166), (96, 96, 100)


def render_all(subject: Subject, scale: int = 1) -> list[Image.Image]:
    """The pictures of a subject: two of a pair, else one."""
    parts = (subject.first, subject.second) if isinstance(subject, Pair) else (subject,)
    return [render(part, scale) for part in parts]


def render(subject: Scene | TextCard | Chart, scale: int = 1) -> Image.Image:
    """An RGB picture of ``subject.size`` times ``scale``."""
    rng = np.random.default_rng(subject.grain)
    picture = _background(rng, subject, scale)
    if isinstance(subject, Chart):
        _render_grid(picture, subject, scale)
        for bar in subject.bars:
            picture.paste(_shade(rng, bar.color), tuple(scale * value for value in bar.box))
        return picture
    if isinstance(subject, Scene):
        inks = [(thing, shape_mask(thing.shape, _side(thing.box) * scale)) for thing in subject.things]
    else:
        inks = [(item, _text_mask(item, scale)) for item in subject.items]
    for part, mask in inks:
        picture.paste(_shade(rng, part.color), (part.box[0] * scale, part.box[1] * scale), mask)
    return picture


def _side(box) -> int:
    return box[2] - box[0]


def _text_mask(item: TextItem, scale: int) -> Image.Image:
    mask = letters(item.text, item.font, item.font_size * scale)
    left, top, right, bottom = (value * scale for value in item.box)
    # Hinting makes a font of twice the size not quite twice as wide.
    return mask if scale == 1 else mask.resize((right - left, bottom - top))


def _background(rng: np.random.Generator, subject, scale: int) -> Image.Image:
    width, height = subject.size
    tint = np.array(subject.background, np.int16) + rng.integers(-_TINT, _TINT + 1, 3)
    noise = rng.integers(-_NOISE, _NOISE + 1, (height * scale, width * scale, 1), dtype=np.int16)
    return Image.fromarray((tint.astype(np.int16) + noise).clip(0, 255).astype(np.uint8))


def _shade(rng: np.random.Generator, color: str) -> tuple[int, int, int]:
    values = np.array(COLOR_VALUES[color]) + rng.integers(-_TINT, _TINT + 1, 3)
    return tuple(int(value) for value in values.clip(0, 255))


def _render_grid(picture: Image.Image, chart: Chart, scale: int) -> None:
    """A line for every value, the one of 5 darker, and the two axes."""
    canvas = ImageDraw.Draw(picture)

    def fill(left: int, top: int, right: int, bottom: int, color) -> None:
        canvas.rectangle((left * scale, top * scale, right * scale - 1, bottom * scale - 1), color)

    (width, _), base = chart.size, chart.base
    for value in range(1, 10):
        y = base - value * chart.unit
        fill(3, y, width - 2, y + 1, _MIDDLE if value == 5 else _GRID)
    fill(3, base, width - 2, base + 2, _AXIS)
    fill(3, 3, 4, base, _AXIS)


@lru_cache(maxsize=1024)
def shape_mask(shape: str, side: int) -> Image.Image:
    """A mask of side x side, mode "L", that the shape fills from edge to edge."""
    large = Image.new("L", (side * _FINER, side * _FINER))
    canvas = ImageDraw.Draw(large)
    end = side * _FINER - 1
    if shape == "circle":
        canvas.ellipse((0, 0, end, end), 255)
    else:
        canvas.polygon([(x * end, y * end) for x, y in _outline(shape)], 255)
    return large.reduce(_FINER)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners in the unit square."""
    if shape == "square":
        return [(0, 0), (1, 0), (1, 1), (0, 1)]
    if shape == "triangle":
        return [(0.5, 0), (1, 1), (0, 1)]
    if shape == "cross":
        a, b = 0.33, 0.67
        corners = [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b)]
        return corners + [(1 - x, 1 - y) for x, y in corners]
    radii = [1, 0.42] * 5
    points = [(r * sin(pi * i / 5), -r * cos(pi * i / 5)) for i, r in enumerate(radii)]
    spans = [(min(values), max(values)) for values in zip(*points, strict=True)]
    return [tuple((v - low) / (high - low) for v, (low, high) in zip(p, spans, strict=True)) for p in points]
