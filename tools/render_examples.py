"""Render the pictures of examples/images/drawn: large scenes of the demo's test split.

    python tools/render_examples.py examples/images/drawn

prints each file and what it shows.
"""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code
from paddlemix_vl2.demo import scenes
from paddlemix_vl2.demo.questions import describe, parts_of
from paddlemix_vl2.demo.rendering import render
from paddlemix_vl2.demo.samples import split_of
from paddlemix_vl2.files import replace_file

SCALE = 3
SMALL, LARGE = (scenes.TILE, scenes.TILE), (2 * scenes.TILE, 2 * scenes.TILE)


def scene(size: tuple[int, int], *looks: tuple[str, str]) -> Callable:
    return lambda rng: scenes.scene_of(rng, size, list(looks))


def card(rng: np.random.Generator):
    while len((subject := scenes.make_card(rng)).items) != 3:
        pass
    return subject


def chart(rng: np.random.Generator):
    while len((subject := scenes.make_chart(rng)).bars) != 4 or subject.size != LARGE:
        pass
    return subject


PICTURES = {
    "shapes": scene(LARGE, ("circle", "red"), ("square", "blue"), ("triangle", "green"), ("star", "orange")),
    "red_circle": scene(SMALL, ("circle", "red")),
    "blue_square": scene(SMALL, ("square", "blue")),
    "words": card,
    "chart": chart,
}


def find(name: str):
    """The first one that belongs to the test split."""
    seeds = itertools.count()
    while split_of(subject := PICTURES[name](np.random.default_rng(next(seeds)))) != "test":
        pass
    return subject


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(argv))


def run(argv: list[str] | None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(argv).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        subject = find(name)
        file = folder / f"{name}.png"
        with replace_file(file) as temporary:
            render(subject, SCALE).save(temporary, format="PNG", optimize=True)
        print(f"{file}: {describe(subject, 'en')} ({len(parts_of(subject))} parts)")


if __name__ == "__main__":
    sys.exit(main())
