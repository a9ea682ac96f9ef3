"""What each token of a picture's span is, by hand, and the figures of it."""

import numpy as np
import pytest

from paddlemix_vl2.figures.picture import to_picture
from paddlemix_vl2.figures.router_figure import PictureViews
from paddlemix_vl2.figures.tiles import plot_tokens, plot_views, token_kinds
from paddlemix_vl2.layouts.tiles import num_image_tokens


def test_the_tokens_of_two_tiles_by_hand():
    """2 x 1 tiles of 2 x 2 features: two rows of the global view, separator, two rows across the tiles."""
    expected = [1, 1, 2, 1, 1, 2, 3, 4, 4, 5, 5, 2, 4, 4, 5, 5, 2]
    assert token_kinds((2, 1), 2).tolist() == expected


@pytest.mark.parametrize("grid", [(1, 1), (3, 2), (1, 9)])
def test_every_tile_has_its_features(grid):
    kinds = token_kinds(grid, 14)
    counts = np.bincount(kinds)
    assert len(kinds) == num_image_tokens(*grid)
    assert counts[1] == 196 and counts[3] == 1 and counts[4:].tolist() == [196] * (grid[0] * grid[1])


def test_figures_are_rendered_at_the_width_that_is_asked_for():
    pixels = np.random.default_rng(0).integers(0, 256, [3, 12, 12, 3], np.uint8)
    for figure in (plot_views(PictureViews(pixels, (1, 2), 3, 4)), plot_tokens((1, 2), 3)):
        picture = to_picture(figure, width=500)
        assert picture.width == 500 and len(picture.getcolors(maxcolors=1 << 20)) > 5
