"""Image tokens in their places, by hand on a grid of two by two features per tile."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.image_layout import num_image_tokens
from paddlemix_vl2.models.fusion import equal_to_previous, place_image_tokens, plan_fusion

SIDE = 2
# One tile: two rows of two features with a newline each, twice (global view, then the tile), a separator
# between.
ONE_TILE = [0, 1, "n", 2, 3, "n", "s", 4, 5, "n", 6, 7, "n"]
# Two tiles side by side: the local rows run across both.
TWO_WIDE = [0, 1, "n", 2, 3, "n", "s", 4, 5, 8, 9, "n", 6, 7, 10, 11, "n"]


def named(plan, features):
    rows = {features: "n", features + 1: "s"}
    return [rows.get(value, value) for value in plan.sources.tolist()]


def mask_of(*lengths, total=40):
    mask = np.zeros([len(lengths), total], bool)
    for row, length in enumerate(lengths):
        mask[row, 3 : 3 + length] = True
    return mask


def test_plan_of_two_samples():
    crops = np.array([[[1, 1], [0, 0]], [[0, 0], [2, 1]]])
    mask = mask_of(13, 17)
    plan = plan_fusion(crops, mask, max_tiles=5, side=SIDE)
    assert plan.tiles.tolist() == [0, 1, 5, 6, 7], (
        "unused tiles of sample 0 do not go through the vision tower"
    )
    shifted = [x + 8 if isinstance(x, int) else x for x in TWO_WIDE]
    assert named(plan, features=20) == ONE_TILE + shifted
    assert plan.positions.tolist() == [*range(3, 16), *range(43, 60)]


def test_values_and_gradients_reach_everything():
    crops = np.array([[[1, 1]], [[0, 0]]])
    plan = plan_fusion(crops, mask_of(13, 0), max_tiles=2, side=SIDE)
    embeddings, features = paddle.randn([2, 40, 4]), paddle.randn([2, 4, 4])
    newline, separator = paddle.randn([4]), paddle.randn([4])
    for tensor in (embeddings, features, newline, separator):
        tensor.stop_gradient = False
    output = place_image_tokens(embeddings, features, newline, separator, plan)
    assert np.array_equal(output[0, :3].numpy(), embeddings[0, :3].numpy())
    assert np.array_equal(output[1].numpy(), embeddings[1].numpy())
    assert np.array_equal(output[0, 5].numpy(), newline.numpy())
    assert np.array_equal(output[0, 9].numpy(), separator.numpy())
    assert np.array_equal(output[0, 10].numpy(), features[1, 0].numpy())
    output.sum().backward()
    assert np.array_equal(features.grad.numpy(), np.ones([2, 4, 4]))
    assert newline.grad.tolist() == [4.0] * 4 and separator.grad.tolist() == [1.0] * 4
    assert float(embeddings.grad[0, 3:16].abs().sum()) == 0 and float(embeddings.grad.sum()) == 4 * (80 - 13)


@pytest.mark.parametrize("side", [1, 2])
def test_a_tile_left_out_is_shown_by_the_one_before(side):
    crops = np.array([[[1, 1], [2, 1]], [[1, 1], [1, 1]]])
    area, lengths = side * side, (num_image_tokens(1, 1, side), num_image_tokens(2, 1, side))
    mask = mask_of(sum(lengths), 2 * lengths[0])
    whole = plan_fusion(crops, mask, max_tiles=5, side=side)
    assert whole.tiles.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8] and whole.lone.tolist() == [1, 6, 8]
    some = whole.leave_out(np.array([1, 8]), side)
    assert some.tiles.tolist() == [0, 2, 3, 4, 5, 6, 7]
    features = np.random.default_rng(0).normal(size=[9 * area, 3])
    features[area : 2 * area], features[8 * area :] = features[:area], features[7 * area : 8 * area]
    vectors = np.random.default_rng(1).normal(size=[2, 3])
    kept = np.delete(features.reshape([9, area, 3]), [1, 8], axis=0).reshape([-1, 3])
    shown = [
        np.concatenate([rows, vectors])[plan.sources] for rows, plan in ((features, whole), (kept, some))
    ]
    assert np.array_equal(*shown)
    assert np.array_equal(some.positions, whole.positions)


def test_only_equal_pixels_count_as_seen():
    tiles = paddle.randn([5, 3, 4, 4])
    tiles[1], tiles[4] = tiles[0], tiles[3]
    tiles[3, 2, 3, 3] += 1
    assert equal_to_previous(tiles, np.array([1, 4])).tolist() == [1]
    assert equal_to_previous(tiles, np.array([], np.int64)).size == 0


def test_counts_that_disagree_are_named():
    with pytest.raises(ValueError, match=r"sample 0.*13 image tokens.*marks 12"):
        plan_fusion(np.array([[[1, 1]]]), mask_of(12), max_tiles=2, side=SIDE)
    with pytest.raises(ValueError, match=r"sample 0.*3 tiles.*holds 2"):
        plan_fusion(np.array([[[2, 1]]]), mask_of(17), max_tiles=2, side=SIDE)
