"""The image tokens of a picture and their order, for the processor and for the model.

A picture is one global view and a grid of local tiles (``width_tiles`` x ``height_tiles``); every view has
``side x side`` patch features. The tokens of a picture are, in this order (layout "2D", global view first,
of the published ``processing_deepseek_vl_v2.py`` and ``modeling_deepseek_vl_v2.py``)::

    global view   side rows of side features, each row closed by the newline vector
    separator     one vector
    local tiles   side * height_tiles rows, each across a whole row of tiles and closed by the newline vector

Pure numpy: the processor counts with it, the model gathers with it.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

NEWLINE = -1
SEPARATOR = -2


@dataclass(frozen=True)
class TileLayout:
    """The layout of DeepSeek-VL2, for views of ``side`` x ``side`` features; see
    :class:`~.fusion_plan.Layout`."""

    side: int
    num_vectors = 2  # newline, separator

    @property
    def num_features(self) -> int:
        return self.side**2

    def num_tokens(self, grid: tuple[int, int]) -> int:
        return num_image_tokens(*grid, side=self.side)

    def num_views(self, grid: tuple[int, int]) -> int:
        return 1 + grid[0] * grid[1]

    def sources(self, grid: tuple[int, int]) -> np.ndarray:
        return image_token_sources(*grid, side=self.side)

    def repeated_views(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """The one tile of a picture of the smallest grid is its global view."""
        return (1,) if grid == (1, 1) else ()


def tokens_per_side(image_size: int, patch_size: int, downsample_ratio: int) -> int:
    """Image tokens along one side of a tile.

    >>> tokens_per_side(384, 14, 2)  # 27 patches, padded to 28, halved
    14
    """
    return ceil((image_size // patch_size) / downsample_ratio)


def num_image_tokens(width_tiles: int, height_tiles: int, side: int = 14) -> int:
    """Length of a picture's token span.

    >>> num_image_tokens(1, 1), num_image_tokens(3, 3)
    (421, 2017)
    """
    return side * (side + 1) + 1 + side * height_tiles * (side * width_tiles + 1)


@lru_cache(maxsize=256)
def image_token_sources(width_tiles: int, height_tiles: int, side: int = 14) -> np.ndarray:
    """Where each image token of a picture comes from.

    Returns:
        int64 [num_image_tokens], read-only. A value >= 0 is a row of the picture's features flattened from
        [1 + width_tiles * height_tiles, side * side] (view 0 is the global one, then the tiles row by row);
        ``NEWLINE`` and ``SEPARATOR`` are the two learned vectors.

    >>> image_token_sources(1, 1, side=2).tolist()
    [0, 1, -1, 2, 3, -1, -2, 4, 5, -1, 6, 7, -1]
    """
    features = np.arange((1 + width_tiles * height_tiles) * side * side, dtype=np.int64)
    global_view, local_tiles = features[: side * side], features[side * side :]
    local_rows = local_tiles.reshape(height_tiles, width_tiles, side, side).transpose(0, 2, 1, 3)
    sources = np.concatenate(
        [
            _close_rows(global_view.reshape(side, side)),
            [SEPARATOR],
            _close_rows(local_rows.reshape(height_tiles * side, width_tiles * side)),
        ]
    )
    sources.setflags(write=False)
    return sources


def _close_rows(rows: np.ndarray) -> np.ndarray:
    newlines = np.full((rows.shape[0], 1), NEWLINE, dtype=np.int64)
    return np.concatenate([rows, newlines], axis=1).reshape(-1)
