"""Image tokens in their places, by hand: two by two features per view, newlines and separators between."""

import numpy as np
import pytest

from paddlemix_vl2.layouts.fusion_plan import plan_fusion
from paddlemix_vl2.layouts.tiles import TileLayout

SIDE = 2
LAYOUT = TileLayout(SIDE)
# One tile: two rows of two features with a newline each, twice (global view, then the tile), a separator
# between.
ONE_TILE = [0, 1, "n", 2, 3, "n", "s", 4, 5, "n", 6, 7, "n"]
# The same where the tile is not seen: it repeats the global view.
ONE_VIEW = [0, 1, "n", 2, 3, "n", "s", 0, 1, "n", 2, 3, "n"]
# Two tiles side by side: the local rows run across both.
TWO_WIDE = [0, 1, "n", 2, 3, "n", "s", 4, 5, 8, 9, "n", 6, 7, 10, 11, "n"]


def named(plan, layout=LAYOUT):
    """The plan's sources with newlines and separators, which come behind all features, by name."""
    features = len(plan.views) * layout.num_features
    rows = {features: "n", features + 1: "s"}
    return [rows.get(value, value) for value in plan.sources.tolist()]


def shifted(sources, by):
    return [value + by if isinstance(value, int) else value for value in sources]


def mask_of(*lengths, total=40):
    """A row for each length, with so many image tokens from position 3 on."""
    mask = np.zeros([len(lengths), total], bool)
    for row, length in enumerate(lengths):
        mask[row, 3 : 3 + length] = True
    return mask


def test_two_samples():
    crops = np.array([[[1, 1], [0, 0]], [[0, 0], [2, 1]]])
    plan = plan_fusion(LAYOUT, crops, mask_of(13, 17), max_views=5)
    assert plan.views.tolist() == [0, 1, 5, 6, 7], (
        "unused views of sample 0 do not go through the vision tower"
    )
    assert named(plan) == ONE_TILE + shifted(TWO_WIDE, 8)
    assert plan.positions.tolist() == [*range(3, 16), *range(43, 60)]


def test_two_samples_without_repeated_views():
    crops = np.array([[[1, 1], [0, 0]], [[0, 0], [2, 1]]])
    plan = plan_fusion(LAYOUT, crops, mask_of(13, 17), max_views=5, drop_repeated=True)
    assert plan.views.tolist() == [0, 5, 6, 7]
    assert named(plan) == ONE_VIEW + shifted(TWO_WIDE, 4)
    assert plan.positions.tolist() == [*range(3, 16), *range(43, 60)]


def test_several_pictures_of_a_sample():
    """Views are counted on within the sample, and features over the batch."""
    crops = np.array([[[2, 1], [1, 1]], [[1, 1], [1, 1]]])
    mask = mask_of(17 + 13, 13 + 13)
    kept = plan_fusion(LAYOUT, crops, mask, max_views=6)
    assert kept.views.tolist() == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    assert named(kept) == [
        *TWO_WIDE,
        *shifted(ONE_TILE, 3 * 4),
        *shifted(ONE_TILE, 5 * 4),
        *shifted(ONE_TILE, 7 * 4),
    ]
    dropped = plan_fusion(LAYOUT, crops, mask, max_views=6, drop_repeated=True)
    assert dropped.views.tolist() == [0, 1, 2, 3, 6, 8]
    assert named(dropped) == [
        *TWO_WIDE,
        *shifted(ONE_VIEW, 3 * 4),
        *shifted(ONE_VIEW, 4 * 4),
        *shifted(ONE_VIEW, 5 * 4),
    ]
    assert np.array_equal(kept.positions, dropped.positions)


def test_rows_of_the_crop_without_a_picture_are_passed_over():
    crops = np.array([[[0, 0], [1, 1], [0, 0]]])
    plan = plan_fusion(LAYOUT, crops, mask_of(13), max_views=2)
    assert plan.views.tolist() == [0, 1] and named(plan) == ONE_TILE


def test_pictures_need_not_be_one_span():
    """Text between pictures: the marked positions are filled in order."""
    mask = np.zeros([1, 40], bool)
    mask[0, [*range(2, 15), *range(20, 33)]] = True
    plan = plan_fusion(LAYOUT, np.array([[[1, 1], [1, 1]]]), mask, max_views=4)
    assert plan.positions.tolist() == [*range(2, 15), *range(20, 33)]
    assert named(plan) == ONE_TILE + shifted(ONE_TILE, 8)


@pytest.mark.parametrize("side", [1, 2])
def test_a_view_left_out_is_shown_by_the_one_before(side):
    """With the features of all views, and with those of the seen ones, the image tokens are the same."""
    layout = TileLayout(side)
    crops = np.array([[[1, 1], [2, 1]], [[1, 1], [1, 1]]])
    lengths = layout.num_tokens((1, 1)), layout.num_tokens((2, 1))
    mask = mask_of(sum(lengths), 2 * lengths[0])
    whole = plan_fusion(layout, crops, mask, max_views=5)
    some = plan_fusion(layout, crops, mask, max_views=5, drop_repeated=True)
    assert whole.views.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert some.views.tolist() == [0, 2, 3, 4, 5, 7]
    features = np.random.default_rng(0).normal(size=[10, side * side, 3])
    for repeated in (1, 6, 8):
        features[repeated] = features[repeated - 1]
    vectors = np.random.default_rng(1).normal(size=[2, 3])
    shown = [
        np.concatenate([features[plan.views].reshape([-1, 3]), vectors])[plan.sources]
        for plan in (whole, some)
    ]
    assert np.array_equal(*shown)
    assert np.array_equal(some.positions, whole.positions)


def test_arrays_are_int64():
    plan = plan_fusion(LAYOUT, np.array([[[1, 1]]], np.int32), mask_of(13), max_views=2)
    assert {plan.views.dtype, plan.sources.dtype, plan.positions.dtype} == {np.dtype(np.int64)}


@pytest.mark.parametrize("drop_repeated", [True, False])
def test_no_picture_no_plan(drop_repeated):
    crops = np.zeros([2, 1, 2], np.int64)
    assert plan_fusion(LAYOUT, crops, mask_of(0, 0), max_views=1, drop_repeated=drop_repeated) is None


def test_marks_without_pictures():
    with pytest.raises(ValueError, match=r"images_seq_mask marks image tokens, but .* holds no picture"):
        plan_fusion(LAYOUT, np.zeros([1, 1, 2], np.int64), mask_of(13), max_views=2)


@pytest.mark.parametrize("drop_repeated", [True, False])
def test_counts_that_disagree_are_named(drop_repeated):
    def plan(crops, mask, max_views):
        return plan_fusion(LAYOUT, np.array(crops), mask, max_views, drop_repeated)

    with pytest.raises(ValueError, match=r"sample 0.*13 image tokens.*marks 12"):
        plan([[[1, 1]]], mask_of(12), max_views=2)
    with pytest.raises(ValueError, match=r"sample 1.*17 image tokens.*marks 30"):
        plan([[[1, 1], [1, 1]], [[2, 1], [0, 0]]], mask_of(26, 30), max_views=4)
    with pytest.raises(ValueError, match=r"sample 1.*0 image tokens.*marks 13"):
        plan([[[1, 1]], [[0, 0]]], mask_of(13, 13), max_views=2)
    with pytest.raises(ValueError, match=r"sample 0.*3 tiles.*holds 2"):
        plan([[[2, 1]]], mask_of(17), max_views=2)
    # The picture tensor has room for repeated views too, whether they are seen or not.
    with pytest.raises(ValueError, match=r"sample 0.*2 tiles.*holds 1"):
        plan([[[1, 1]]], mask_of(13), max_views=1)


class TextTile:
    """Another layout: three features per view, one vector behind each view, the last view repeats the first
    of two."""

    num_features = 3
    num_vectors = 1

    def num_tokens(self, grid):
        return 4 * self.num_views(grid)

    def num_views(self, grid):
        return grid[0] * grid[1]

    def sources(self, grid):
        spans = [[3 * view, 3 * view + 1, 3 * view + 2, -1] for view in range(self.num_views(grid))]
        return np.concatenate(spans)

    def repeated_views(self, grid):
        return (1,) if self.num_views(grid) == 2 else ()


def test_layouts_of_other_families():
    crops, mask = np.array([[[2, 1], [3, 1]]]), mask_of(8 + 12)
    kept = plan_fusion(TextTile(), crops, mask, max_views=5)
    assert kept.views.tolist() == [0, 1, 2, 3, 4]
    assert named(kept, TextTile) == [
        0,
        1,
        2,
        "n",
        3,
        4,
        5,
        "n",
        6,
        7,
        8,
        "n",
        9,
        10,
        11,
        "n",
        12,
        13,
        14,
        "n",
    ]
    dropped = plan_fusion(TextTile(), crops, mask, max_views=5, drop_repeated=True)
    assert dropped.views.tolist() == [0, 2, 3, 4]
    assert named(dropped, TextTile) == [
        *[0, 1, 2, "n", 0, 1, 2, "n"],
        *[3, 4, 5, "n", 6, 7, 8, "n", 9, 10, 11, "n"],
    ]
