"""From a picture to the views that the vision encoder sees: one global view and a grid of local tiles.

Source: DeepSeek-VL2 paper (arXiv 2412.10302), section 3.1 "dynamic tiling"; mirrors
``select_best_resolution`` and the picture part of ``tokenize_with_images`` of the published processor.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Size = tuple[int, int]  # width, height


def select_best_resolution(image_size: Size, candidate_resolutions: Sequence[Size]) -> Size:
    """The candidate that keeps most of the picture's pixels.

    Among equals it is the one with the least padding, and among these the first.

    Args:
        image_size: width and height.
        candidate_resolutions: pairs of width and height.

    >>> select_best_resolution((800, 400), [(384, 384), (384, 768), (768, 384), (768, 768)])
    (768, 384)
    >>> select_best_resolution((100, 60), [(384, 768), (384, 384)])  # both keep all of it
    (384, 384)
    """
    width, height = image_size

    def merit(candidate: Size) -> tuple[int, int]:
        scale = min(candidate[0] / width, candidate[1] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - candidate[0] * candidate[1]

    best_width, best_height = max(candidate_resolutions, key=merit)
    return best_width, best_height


def check_resolutions(candidate_resolutions: Sequence[Sequence[int]]) -> list[Size]:
    """The candidates as pairs.

    Raises:
        ValueError: they are not pairs, the first is not square, or one is not a grid of the first.
    """
    if not isinstance(candidate_resolutions, list | tuple) or not candidate_resolutions:
        raise ValueError(f"candidate_resolutions must be a list of sizes, not {candidate_resolutions!r}")
    for pair in candidate_resolutions:
        is_list = isinstance(pair, list | tuple)
        if not is_list or len(pair) != 2 or any(type(side) is not int for side in pair):
            raise ValueError(f"candidate_resolutions: {pair!r} is not a width and a height in pixels")
    pairs = [tuple(pair) for pair in candidate_resolutions]
    tile = pairs[0][0]
    if tile < 1 or pairs[0][1] != tile:
        raise ValueError(f"candidate_resolutions: the first must be one square tile, not {list(pairs[0])}")
    for pair in pairs:
        if min(pair) < tile or pair[0] % tile or pair[1] % tile:
            raise ValueError(f"candidate_resolutions: {list(pair)} is not a grid of tiles of {tile} x {tile}")
    return pairs


def all_resolutions(tile_size: int, max_tiles: int) -> list[Size]:
    """Every grid of at most ``max_tiles`` tiles, as width and height in pixels.

    Those of at most 9 tiles are the published candidates, in their order: by the number of tiles, the narrow
    ones first.

    >>> all_resolutions(384, 2)
    [(384, 384), (384, 768), (768, 384)]
    """
    sides = range(1, max_tiles + 1)
    grids = [(columns, rows) for columns in sides for rows in sides if columns * rows <= max_tiles]
    grids.sort(key=lambda grid: (grid[0] * grid[1], min(grid), grid))
    return [(columns * tile_size, rows * tile_size) for columns, rows in grids]


def fitted_size(picture_size: Size, box: Size) -> Size:
    """The largest size with the picture's proportions that fits into ``box``; no side is less than one pixel.

    The rounding is that of Pillow's ``ImageOps.contain``. Its own result for a 20000 x 1 picture has no rows
    at all (some versions raise, others return an empty picture).

    >>> fitted_size((200, 101), (384, 384)), fitted_size((20000, 1), (384, 384))
    ((384, 194), (384, 1))
    """
    width, height = picture_size
    if width / height > box[0] / box[1]:
        return box[0], max(1, round(height / width * box[0]))
    return max(1, round(width / height * box[1])), box[1]


def pad_picture(picture: Image.Image, size: Size, color: tuple[int, int, int]) -> Image.Image:
    """An RGB picture scaled to fit into ``size`` (bicubic) and centred on a canvas of one colour."""
    fitted = picture.resize(fitted_size(picture.size, size), Image.Resampling.BICUBIC)
    canvas = Image.new("RGB", size, color)
    canvas.paste(fitted, (round((size[0] - fitted.width) * 0.5), round((size[1] - fitted.height) * 0.5)))
    return canvas


def cut_tiles(picture: Image.Image, tile_size: int) -> np.ndarray:
    """Square tiles of an RGB picture whose sides are multiples of ``tile_size``, row by row.

    Returns:
        uint8 [tiles, tile_size, tile_size, 3].
    """
    columns, rows = picture.width // tile_size, picture.height // tile_size
    grid = np.asarray(picture).reshape(rows, tile_size, columns, tile_size, 3)
    return grid.transpose(0, 2, 1, 3, 4).reshape(rows * columns, tile_size, tile_size, 3)


@dataclass(frozen=True)
class PictureTransform:
    """How pixels become numbers. Mean and standard deviation are per channel, of values between 0 and 1."""

    tile_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    normalize: bool = True

    @property
    def padding_color(self) -> tuple[int, int, int]:
        """The mean colour, rounded down as in the published code: 127 for a mean of 0.5."""
        red, green, blue = (int(value * 255) for value in self.mean)
        return red, green, blue

    def views(self, picture: Image.Image, resolution: Size) -> np.ndarray:
        """Global view, then the local tiles row by row of the picture padded to ``resolution``.

        Args:
            picture: RGB, any size.
            resolution: width and height, multiples of the tile size.

        Returns:
            float32 [1 + tiles, 3, tile_size, tile_size].
        """
        square = (self.tile_size, self.tile_size)
        global_view = pad_picture(picture, square, self.padding_color)
        local_view = (
            global_view if resolution == square else pad_picture(picture, resolution, self.padding_color)
        )
        return self._to_values(
            np.concatenate([cut_tiles(global_view, self.tile_size), cut_tiles(local_view, self.tile_size)])
        )

    def blank_view(self) -> np.ndarray:
        """The view of a sample without pictures: float32 zeros [1, 3, tile_size, tile_size]."""
        return np.zeros((1, 3, self.tile_size, self.tile_size), dtype=np.float32)

    def _to_values(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] -> float32 [N, 3, H, W], each channel by a table of the 256 values of a byte."""
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        values = np.empty((pixels.shape[0], 3, *pixels.shape[1:3]), dtype=np.float32)
        for channel in range(3):
            table = levels
            if self.normalize:
                table = (levels - np.float32(self.mean[channel])) / np.float32(self.std[channel])
            values[:, channel] = table[pixels[..., channel]]
        return values
