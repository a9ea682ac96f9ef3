"""Tile choice, scaling, padding and cutting."""

import doctest
import json

import numpy as np
import pytest
from PIL import Image, ImageOps

from paddlemix_vl2.processing import select_best_resolution, tiling
from paddlemix_vl2.processing.tiling import (
    PictureTransform,
    all_resolutions,
    check_resolutions,
    cut_tiles,
    fitted_size,
    pad_picture,
)

GREY = (127, 127, 127)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 7 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_examples_in_docstrings():
    result = doctest.testmod(tiling)
    assert result.attempted >= 3
    assert result.failed == 0


def test_best_resolution_as_recorded(golden):
    recorded = json.loads((golden / "best_resolution.json").read_text())
    candidates = recorded["candidate_resolutions"]
    assert (len(candidates), len(recorded["cases"])) == (23, 2009)
    wrong = [
        case for case in recorded["cases"] if select_best_resolution(case[:2], candidates) != tuple(case[2:])
    ]
    assert wrong == []


def test_best_resolution_where_no_candidate_keeps_a_pixel():
    assert select_best_resolution((20000, 1), [(384, 384), (768, 384)]) == (384, 384)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], r"must be a list of sizes, not \[\]"),
        ([(384, 384, 384)], r"\(384, 384, 384\) is not a width and a height in pixels"),
        ([(384.0, 384)], r"\(384.0, 384\) is not a width and a height"),
        ([384, 384], "384 is not a width and a height"),
        ([(384, 768)], r"first must be one square tile, not \[384, 768\]"),
        ([(0, 0)], "first must be one square tile"),
        ([(384, 384), (400, 384)], r"\[400, 384\] is not a grid of tiles of 384 x 384"),
        ([(384, 384), (0, 384)], r"\[0, 384\] is not a grid"),
    ],
)
def test_bad_candidates(candidates, message):
    with pytest.raises(ValueError, match=message):
        check_resolutions(candidates)


def test_fitted_size_touches_the_box():
    assert fitted_size((100, 100), (384, 384)) == (384, 384)
    assert fitted_size((1900, 300), (384, 384)) == (384, 61)  # 300 / 1900 * 384 = 60.6
    assert fitted_size((300, 1900), (384, 384)) == (61, 384)
    assert fitted_size((1, 20000), (384, 384)) == (1, 384)
    assert fitted_size((1, 1), (1152, 1152)) == (1152, 1152)


@pytest.mark.parametrize("size", [(384, 384), (768, 384), (384, 1152), (10, 11)])
@pytest.mark.parametrize("picture_size", [(150, 90), (91, 150), (64, 64), (777, 389), (3, 2)])
def test_padding_equals_pillow(picture_size, size):
    """The published code calls Pillow's function; the results differ only where a side rounds to nothing."""
    picture = noise(*picture_size)
    ours = np.asarray(pad_picture(picture, size, GREY))
    assert np.array_equal(ours, np.asarray(ImageOps.pad(picture, size, color=GREY)))


def test_padding_keeps_a_row_of_an_extreme_picture():
    padded = np.asarray(pad_picture(Image.new("RGB", (20000, 1), (250, 0, 0)), (384, 384), GREY))
    rows = np.nonzero((padded == (250, 0, 0)).all(axis=(1, 2)))[0]
    assert rows.tolist() == [192]  # round(383 / 2), to even
    assert (np.delete(padded, rows, axis=0) == 127).all()


def test_tiles_are_cut_row_by_row():
    picture = noise(3 * 8, 2 * 8)
    tiles = cut_tiles(picture, 8)
    boxes = [(x, y, x + 8, y + 8) for y in (0, 8) for x in (0, 8, 16)]
    assert np.array_equal(tiles, np.stack([np.asarray(picture.crop(box)) for box in boxes]))


def test_views_start_with_the_global_one():
    transform = PictureTransform(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    picture = noise(16, 8)
    views = transform.views(picture, (16, 8))
    assert (views.shape, views.dtype) == ((3, 3, 8, 8), np.float32)
    channels_last = np.asarray(picture).astype(np.float64) / 127.5 - 1  # (x / 255 - 0.5) / 0.5
    assert np.abs(views[2] - channels_last[:, 8:].transpose(2, 0, 1)).max() < 1e-6  # float32 rounding
    # Scaled to 8 x 4, centred: two rows of grey above and below; (127 / 255 - 0.5) / 0.5 = -1 / 255.
    assert np.abs(views[0][:, [0, 1, 6, 7]] + 1 / 255).max() < 1e-6


def test_channels_have_their_own_statistics():
    transform = PictureTransform(2, (0.0, 0.25, 0.5), (1.0, 0.5, 0.25))
    assert transform.padding_color == (0, 63, 127)
    view = transform.views(Image.new("RGB", (2, 2), (255, 255, 255)), (2, 2))[0]
    assert np.abs(view[:, 0, 0] - [1.0, 1.5, 2.0]).max() < 1e-6


def test_without_normalisation_values_are_from_0_to_1():
    transform = PictureTransform(2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), normalize=False)
    view = transform.views(Image.new("RGB", (2, 2), (0, 51, 255)), (2, 2))[0]
    assert np.abs(view[:, 0, 0] - [0.0, 0.2, 1.0]).max() < 1e-6


def test_all_grids_of_nine_tiles_are_the_published_candidates(golden):
    published = json.loads((golden / "best_resolution.json").read_text())["candidate_resolutions"]
    assert [list(size) for size in all_resolutions(384, 9)] == published
    # Of at most n tiles there are n/1 + n/2 + ... + n/n grids, each rounded down.
    assert len(all_resolutions(84, 18)) == sum(18 // side for side in range(1, 19))
    assert check_resolutions(all_resolutions(84, 18))[0] == (84, 84)
