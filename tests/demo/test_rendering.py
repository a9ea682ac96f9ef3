"""Pictures and what is said of them agree, judged from pixels."""

from itertools import pairwise

import numpy as np
import pytest

from paddlemix_vl2.demo import scenes
from paddlemix_vl2.demo.rendering import render, render_all, shape_mask
from paddlemix_vl2.demo.scenes import Chart, Pair, Scene
from paddlemix_vl2.demo.vocabulary import BACKGROUNDS, COLOR_VALUES, FONTS, SHAPES, WORDS

COUNT = 150


def parts_of(subject):
    if isinstance(subject, Scene):
        return subject.things
    return subject.bars if isinstance(subject, Chart) else subject.items


def colored(picture):
    """Where a picture is clearly not background: bool [H, W]."""
    pixels = np.asarray(picture).astype(int)
    return np.abs(pixels - np.median(pixels, axis=(0, 1))).max(-1) > 8


def bounds(mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def make(maker, seed=0):
    rng = np.random.default_rng(seed)
    return [maker(rng) for _ in range(COUNT)]


@pytest.mark.parametrize(("maker", "slack"), [(scenes.make_scene, 0), (scenes.make_card, 1)])
def test_boxes_enclose_what_is_drawn_and_nothing_else(maker, slack):
    """Letters may end in a pixel too pale to count."""
    for subject in make(maker):
        rest = colored(render(subject))
        for part in parts_of(subject):
            left, top, right, bottom = part.box
            found = bounds(rest[top:bottom, left:right])
            expected = (0, 0, right - left, bottom - top)
            assert np.abs(np.subtract(found, expected)).max() <= slack, part
            rest[top:bottom, left:right] = False
        assert not rest.any()


def test_bars_stand_on_the_axis_and_are_as_high_as_their_value():
    for chart in make(scenes.make_chart):
        pixels = np.asarray(render(chart)).astype(int)
        for bar in chart.bars:
            left, top, right, bottom = bar.box
            inside = pixels[top:bottom, left:right]
            assert (inside == inside[0, 0]).all()
            assert (pixels[top - 1, left:right] != inside[0, 0]).any()
            assert (pixels[bottom, left:right] != inside[0, 0]).any()
            assert bar.value == round((bottom - top) / (chart.size[1] * 8 / 84))
        assert len({bar.color for bar in chart.bars}) == len({bar.value for bar in chart.bars})


@pytest.mark.parametrize("maker", [scenes.make_scene, scenes.make_chart, scenes.make_card])
def test_everything_has_the_colour_that_is_said(maker):
    for subject in make(maker):
        pixels = np.asarray(render(subject)).astype(int)
        for part in parts_of(subject):
            left, top, right, bottom = part.box
            inside = pixels[top:bottom, left:right].reshape(-1, 3)
            ink = inside[np.abs(inside - np.median(pixels, axis=(0, 1))).max(-1) > 60]
            names = list(COLOR_VALUES)
            distances = np.abs(ink[:, None] - np.array(list(COLOR_VALUES.values()))).sum(-1)
            nearest = np.bincount(distances.argmin(1), minlength=len(names)).argmax()
            assert names[nearest] == part.color


@pytest.mark.parametrize("maker", [scenes.make_scene, scenes.make_chart, scenes.make_card])
def test_everything_is_inside_the_picture_and_apart(maker):
    for subject in make(maker):
        width, height = subject.size
        assert render(subject).size == (width, height) and render(subject).mode == "RGB"
        boxes = [part.box for part in parts_of(subject)]
        for index, (left, top, right, bottom) in enumerate(boxes):
            assert 2 <= left < right <= width - 2 and 2 <= top < bottom <= height - 2
            for other in boxes[:index]:
                assert left >= other[2] or other[0] >= right or top >= other[3] or other[1] >= bottom


def test_things_are_in_the_cell_that_is_said_in_reading_order_and_of_the_size_that_is_said():
    for scene in make(scenes.make_scene):
        cells = []
        for thing in scene.things:
            left, top, right, bottom = thing.box
            column, row = (left + right) / 2 * 3 / scene.size[0], (top + bottom) / 2 * 3 / scene.size[1]
            assert thing.cell == int(row) * 3 + int(column)
            assert all(0.05 < value % 1 < 0.95 for value in (column, row)), "too near to the next cell"
            assert right - left == bottom - top and 26 <= right - left <= 72
            cells.append(thing.cell)
        assert cells == sorted(set(cells))
        assert len({(thing.shape, thing.color) for thing in scene.things}) == len(cells)


def test_text_is_in_reading_order_and_can_be_read():
    for card in make(scenes.make_card):
        boxes = [item.box for item in card.items]
        for a, b in pairwise(boxes):
            is_below, is_beside = b[1] >= a[3], b[0] >= a[2] and min(a[3], b[3]) > max(a[1], b[1])
            assert is_below or is_beside
            assert card.has_lines == is_below
        assert len({item.text for item in card.items}) == len(card.items)
        for item in card.items:
            assert item.font_size >= 20
            assert item.text in WORDS or (item.text.isdecimal() and str(int(item.text)) == item.text)


def test_all_variety_occurs():
    subjects = make(scenes.make_scene)
    things = [thing for scene in subjects for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.color for thing in things} == set(COLOR_VALUES)
    assert {thing.cell for thing in things} == set(range(9))
    assert {len(scene.things) for scene in subjects} == {1, 2, 3, 4}
    assert {scene.size for scene in subjects} == {(84, 84), (168, 84), (84, 168), (168, 168)}
    assert {scene.background for scene in subjects} == set(BACKGROUNDS)
    items = [item for card in make(scenes.make_card) for item in card.items]
    assert {item.font for item in items} == set(FONTS)
    assert {len(item.text) for item in items if item.is_number} == {1, 2}


def test_a_pair_has_two_small_pictures_that_agree_about_half_of_the_time(rng):
    pairs = [scenes.make_pair(rng) for _ in range(400)]
    for name in ("shape", "color"):
        same = [getattr(p.first.things[0], name) == getattr(p.second.things[0], name) for p in pairs]
        assert 0.4 < np.mean(same) < 0.6
    assert isinstance(pairs[0], Pair)
    assert [picture.size for picture in render_all(pairs[0])] == [(84, 84), (84, 84)]


@pytest.mark.parametrize("maker", [scenes.make_scene, scenes.make_chart, scenes.make_card])
def test_a_larger_picture_shows_the_same(maker):
    for subject in make(maker)[:10]:
        large = render(subject, scale=3)
        assert large.size == (3 * subject.size[0], 3 * subject.size[1])
        small = np.asarray(large.reduce(3)).astype(int)
        # The noise differs, and letters are hinted for their size.
        assert np.abs(small - np.asarray(render(subject)).astype(int)).mean() < 8


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_their_square(shape):
    mask = np.asarray(shape_mask(shape, 30))
    assert mask.shape == (30, 30)
    assert mask.max() == 255 and all(edge.max() > 0 for edge in (mask[0], mask[-1], mask[:, 0], mask[:, -1]))


def test_shapes_look_different():
    masks = [np.asarray(shape_mask(shape, 30)).astype(int) for shape in SHAPES]
    for index, mask in enumerate(masks):
        assert all(np.abs(mask - other).mean() > 25 for other in masks[:index])
