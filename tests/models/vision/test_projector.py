"""The 2x2 downsampling by hand."""

import numpy as np
import paddle

from paddlemix_vl2.config.vision import MlpProjectorConfig
from paddlemix_vl2.models.vision.projector import MlpProjector


def test_squares_are_channel_major_and_padded_right_and_below():
    projector = MlpProjector(MlpProjectorConfig(input_dim=2, n_embed=3))
    grid = np.arange(9)  # a 3 x 3 grid, channel 0 counts up, channel 1 is 100 more
    patches = paddle.to_tensor(np.stack([grid, grid + 100], axis=-1)[None], "float32")
    squares = projector.downsample(patches)[0].tolist()
    assert squares == [
        [0, 1, 3, 4, 100, 101, 103, 104],
        [2, 0, 5, 0, 102, 0, 105, 0],
        [6, 7, 0, 0, 106, 107, 0, 0],
        [8, 0, 0, 0, 108, 0, 0, 0],
    ]


def test_depth_and_names():
    projector = MlpProjector(MlpProjectorConfig(input_dim=2, n_embed=6, depth=3, mlp_ratio=2))
    shapes = {name: list(value.shape) for name, value in projector.named_parameters() if "weight" in name}
    assert shapes == {"layers.0.weight": [8, 12], "layers.2.weight": [12, 12], "layers.4.weight": [12, 6]}
