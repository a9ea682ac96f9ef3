"""``DeepseekVLV2Processor``: pictures as a global view and dynamic tiles.

Mirrors ``DeepseekVLV2Processor`` of the published code; the settings are the keys of
``processor_config.json``.
"""

from collections.abc import Sequence

import numpy as np

from paddlemix_vl2.config.checks import check_choice
from paddlemix_vl2.layouts.tiles import TileLayout, tokens_per_side
from paddlemix_vl2.processing.pictures import open_picture, picture_size
from paddlemix_vl2.processing.processor import Grid, Picture, VisionLanguageProcessor
from paddlemix_vl2.processing.templates import TEMPLATES
from paddlemix_vl2.processing.tiling import (
    PictureTransform,
    check_resolutions,
    select_best_resolution,
)
from paddlemix_vl2.processing.tokenizer import IMAGE_TOKEN, PAD_TOKEN, DeepseekTokenizer

_TYPES = {
    int: ("patch_size", "downsample_ratio", "ignore_id"),
    bool: ("normalize", "add_special_token", "mask_prompt"),
}


class DeepseekVLV2Processor(VisionLanguageProcessor):
    """The processor of VL2-Tiny, VL2-Small and VL2.

    Every argument between the tokenizer and the ``*`` is a key of ``processor_config.json``.

    Args:
        tokenizer: text to ids.
        candidate_resolutions: pairs of width and height; the first is one tile, the others are grids of it.
        patch_size, downsample_ratio: of the vision encoder and the projector; with the tile size they give
            the number of image tokens.
        image_mean, image_std: per channel, of values between 0 and 1; used where ``normalize``. The mean is
            also the colour of the padding.
        image_token, pad_token: as in the tokenizer.
        add_special_token: false in every published file; true is refused.
        sft_format: name of the conversation template; "deepseek" is the one of every published file.
        mask_prompt: whether labels cover answers only. Without it they cover all text.
        ignore_id: label of positions that are not learned.
        read_pixels: False makes the same samples with empty views, float32 [N, 3, 0, 0]: of a picture's file
            the size is read, which says how many tokens and views there are.

    Attributes:
        tile_size: width and height of a view in pixels: the first candidate resolution.
        tokens_per_side: image tokens along one side of a view.

    Raises:
        ValueError: a setting is out of range or not supported.
    """

    max_tiled_pictures = 2

    def __init__(
        self,
        tokenizer: DeepseekTokenizer,
        candidate_resolutions: Sequence[Sequence[int]],
        patch_size: int = 14,
        downsample_ratio: int = 2,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        normalize: bool = True,
        image_token: str = IMAGE_TOKEN,
        pad_token: str = PAD_TOKEN,
        add_special_token: bool = False,
        sft_format: str = "deepseek",
        mask_prompt: bool = False,
        ignore_id: int = -100,
        *,
        read_pixels: bool = True,
    ):
        self.tokenizer = tokenizer
        self.candidate_resolutions = check_resolutions(candidate_resolutions)
        self.patch_size = patch_size
        self.downsample_ratio = downsample_ratio
        self.image_mean = _check_channels("image_mean", image_mean)
        self.image_std = _check_channels("image_std", image_std)
        self.normalize = normalize
        self.image_token = image_token
        self.pad_token = pad_token
        self.add_special_token = add_special_token
        self.sft_format = sft_format
        self.mask_prompt = mask_prompt
        self.ignore_id = ignore_id
        self.tile_size = self.candidate_resolutions[0][0]
        self._check()
        self.template = TEMPLATES[sft_format]
        self.tokens_per_side = tokens_per_side(self.tile_size, patch_size, downsample_ratio)
        self.layout = TileLayout(self.tokens_per_side)
        self._read_pixels = read_pixels
        self._transform = PictureTransform(self.tile_size, self.image_mean, self.image_std, normalize)

    def _check(self) -> None:
        for kind, names in _TYPES.items():
            for name in names:
                if type(getattr(self, name)) is not kind:
                    raise ValueError(f"{name} is {getattr(self, name)!r}; it must be of type {kind.__name__}")
        if min(self.patch_size, self.downsample_ratio) < 1 or self.patch_size > self.tile_size:
            raise ValueError(
                f"patch_size {self.patch_size} and downsample_ratio {self.downsample_ratio} must be at "
                f"least 1, and a patch not larger than a tile ({self.tile_size})"
            )
        if min(self.image_std) <= 0:
            raise ValueError(f"image_std is {list(self.image_std)}; it must be above 0")
        check_choice("sft_format", self.sft_format, list(TEMPLATES))
        if self.add_special_token:
            raise ValueError("add_special_token true is not used by any published model and not supported")
        for name in ("image_token", "pad_token"):
            ours, theirs = getattr(self, name), getattr(self.tokenizer, name)
            if ours != theirs:
                raise ValueError(f"{name} is {ours!r} in the processor and {theirs!r} in its tokenizer")

    def without_pixels(self) -> "DeepseekVLV2Processor":
        """The same processor with ``read_pixels=False``."""
        return type(self)(self.tokenizer, **self.settings, read_pixels=False)

    def view_picture(self, source: Picture, name: str | None, cropping: bool) -> tuple[np.ndarray, Grid]:
        """A picture's global view and tiles, and its grid (tiles in width, tiles in height)."""
        picture = open_picture(source, name) if self._read_pixels else None
        size = picture.size if picture else picture_size(source, name)
        resolution = (self.tile_size, self.tile_size)
        if cropping:
            resolution = select_best_resolution(size, self.candidate_resolutions)
        grid = (resolution[0] // self.tile_size, resolution[1] // self.tile_size)
        if picture is None:
            return np.empty((self.layout.num_views(grid), 3, 0, 0), dtype=np.float32), grid
        return self._transform.views(picture, resolution), grid

    def blank_views(self) -> np.ndarray:
        """One view of zeros."""
        return self._transform.blank_view()


def _check_channels(name: str, values: Sequence[float]) -> tuple[float, float, float]:
    if not isinstance(values, list | tuple) or len(values) != 3:
        raise ValueError(f"{name} is {values!r}; it must be three numbers (red, green, blue)")
    red, green, blue = (float(value) for value in values)
    return red, green, blue
