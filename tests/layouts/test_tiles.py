"""The token layout of a picture, against cases worked out by hand."""

import doctest

import numpy as np
import pytest

from paddlemix_vl2.layouts import tiles
from paddlemix_vl2.layouts.tiles import (
    NEWLINE,
    SEPARATOR,
    TileLayout,
    image_token_sources,
    num_image_tokens,
    tokens_per_side,
)


def test_examples_in_docstrings():
    result = doctest.testmod(tiles)
    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize(
    ("sizes", "expected"), [((384, 14, 2), 14), ((56, 14, 2), 2), ((42, 14, 2), 2), ((64, 16, 1), 4)]
)
def test_tokens_per_side_rounds_up(sizes, expected):
    assert tokens_per_side(*sizes) == expected


# 210 tokens of the global view, a separator, then 14 * height rows of 14 * width + 1.
@pytest.mark.parametrize(
    ("grid", "expected"), [((1, 1), 421), ((2, 3), 1429), ((3, 2), 1415), ((9, 1), 1989), ((1, 9), 2101)]
)
def test_counts_of_published_grids(grid, expected):
    assert num_image_tokens(*grid) == expected
    assert len(image_token_sources(*grid)) == expected


def test_two_tiles_side_by_side():
    """View 0 holds features 0 to 3, the left tile 4 to 7, the right tile 8 to 11, each row by row."""
    n, s = NEWLINE, SEPARATOR
    expected = [0, 1, n, 2, 3, n, s, 4, 5, 8, 9, n, 6, 7, 10, 11, n]
    assert image_token_sources(2, 1, side=2).tolist() == expected


def test_two_tiles_on_top_of_each_other():
    n, s = NEWLINE, SEPARATOR
    expected = [0, 1, n, 2, 3, n, s, 4, 5, n, 6, 7, n, 8, 9, n, 10, 11, n]
    assert image_token_sources(1, 2, side=2).tolist() == expected


def test_every_feature_once():
    sources = image_token_sources(3, 2, side=4)
    features = sources[sources >= 0]
    assert sorted(features) == list(range((1 + 3 * 2) * 4 * 4))
    assert np.sum(sources == SEPARATOR) == 1
    assert np.sum(sources == NEWLINE) == 4 + 2 * 4


def test_result_is_shared_and_read_only():
    with pytest.raises(ValueError, match="read-only"):
        image_token_sources(1, 1)[0] = 5


def test_the_layout_of_a_view_size():
    layout = TileLayout(side=2)
    assert (layout.num_features, layout.num_vectors) == (4, 2)
    for grid, tokens in (((1, 1), 13), ((2, 1), 17), ((1, 2), 19)):
        assert layout.num_tokens(grid) == len(layout.sources(grid)) == tokens
        assert layout.num_views(grid) == 1 + grid[0] * grid[1]
    assert layout.sources((2, 1)).tolist() == image_token_sources(2, 1, side=2).tolist()


def test_only_the_tile_of_the_smallest_grid_repeats_the_global_view():
    layout = TileLayout(side=2)
    assert layout.repeated_views((1, 1)) == (1,)
    assert layout.repeated_views((2, 1)) == layout.repeated_views((1, 3)) == ()
