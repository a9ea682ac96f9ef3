"""The projector between vision encoder and language model: 2x2 downsampling and an MLP.

Source: published ``MlpProjector`` with ``projector_type: downsample_mlp_gelu``; the other types of the
published code are used by no published model.
"""

from itertools import pairwise

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlemix_vl2.config.vision import MlpProjectorConfig


class MlpProjector(nn.Layer):
    """Joins each ``downsample_ratio`` square of patches into one image token and projects it to the hidden
    size."""

    def __init__(self, config: MlpProjectorConfig):
        super().__init__()
        self.ratio = config.downsample_ratio
        inner = config.n_embed * config.mlp_ratio
        widths = [config.input_dim * self.ratio**2, *[inner] * (config.depth - 1), config.n_embed]
        layers: list[nn.Layer] = [nn.Linear(widths[0], widths[1])]
        for before, after in pairwise(widths[1:]):
            layers += [nn.GELU(), nn.Linear(before, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, patches: paddle.Tensor) -> paddle.Tensor:
        """[I, P, W] on a square grid -> [I, side * side, H], side being the grid's half, rounded up."""
        return self.layers(self.downsample(patches))

    def downsample(self, patches: paddle.Tensor) -> paddle.Tensor:
        """Zero-pad the grid on the right and bottom, then gather each square channel-major: (channel, row,
        column).

        [I, P, W] -> [I, side * side, W * ratio ** 2].
        """
        tiles, count, width = patches.shape
        grid = round(count**0.5)
        patches = patches.reshape([tiles, grid, grid, width])
        missing = -grid % self.ratio
        if missing:
            patches = F.pad(patches, [0, missing, 0, missing], data_format="NHWC")
        side = (grid + missing) // self.ratio
        squares = patches.reshape([tiles, side, self.ratio, side, self.ratio, width])
        return squares.transpose([0, 1, 3, 5, 2, 4]).reshape([tiles, side * side, -1])
