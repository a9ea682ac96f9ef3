"""Image tokens in their places, by hand on a grid of two by two features per view."""

import numpy as np
import paddle

from paddlemix_vl2.layouts.fusion_plan import plan_fusion
from paddlemix_vl2.layouts.tiles import TileLayout
from paddlemix_vl2.models.fusion import place_image_tokens

LAYOUT = TileLayout(side=2)


def mask_of(*lengths, total=40):
    mask = np.zeros([len(lengths), total], bool)
    for row, length in enumerate(lengths):
        mask[row, 3 : 3 + length] = True
    return mask


def test_values_and_gradients_reach_everything():
    crops = np.array([[[1, 1]], [[0, 0]]])
    plan = plan_fusion(LAYOUT, crops, mask_of(13, 0), max_views=2)
    embeddings, features = paddle.randn([2, 40, 4]), paddle.randn([2, 4, 4])
    newline, separator = paddle.randn([4]), paddle.randn([4])
    for tensor in (embeddings, features, newline, separator):
        tensor.stop_gradient = False
    places = paddle.to_tensor(plan.sources), paddle.to_tensor(plan.positions)
    output = place_image_tokens(embeddings, features, [newline, separator], *places)
    assert np.array_equal(output[0, :3].numpy(), embeddings[0, :3].numpy())
    assert np.array_equal(output[1].numpy(), embeddings[1].numpy())
    assert np.array_equal(output[0, 5].numpy(), newline.numpy())
    assert np.array_equal(output[0, 9].numpy(), separator.numpy())
    assert np.array_equal(output[0, 10].numpy(), features[1, 0].numpy())
    output.sum().backward()
    assert np.array_equal(features.grad.numpy(), np.ones([2, 4, 4]))
    assert newline.grad.tolist() == [4.0] * 4 and separator.grad.tolist() == [1.0] * 4
    assert float(embeddings.grad[0, 3:16].abs().sum()) == 0 and float(embeddings.grad.sum()) == 4 * (80 - 13)
