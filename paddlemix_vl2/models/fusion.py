"""Puts image features among the text embeddings, following the layout of ``image_layout``.

The plan is made on the host from the tile grids and the mask, both checked; the device then needs one gather
(which also lays out newlines and separators) and one out-of-place scatter, both with a full gradient. An
in-place ``masked_scatter_`` on a slice would lose the gradient and leave projector and vision tower
untrained.
"""

from dataclasses import dataclass

import numpy as np
import paddle

from paddlemix_vl2 import device
from paddlemix_vl2.image_layout import NEWLINE, SEPARATOR, image_token_sources


@dataclass(frozen=True)
class FusionPlan:
    """Where the image tokens of a batch come from and go to.

    Attributes:
        tiles: int64 [I], rows of the batch's tiles flattened from [B, max_tiles] that hold a picture.
        sources: int64 [image tokens], rows of the features [I * side * side], then the newline, then the
            separator.
        positions: int64 [image tokens], rows of the embeddings flattened from [B, T].
    """

    tiles: np.ndarray
    sources: np.ndarray
    positions: np.ndarray


def plan_fusion(spatial_crop: np.ndarray, seq_mask: np.ndarray, max_tiles: int, side: int) -> FusionPlan:
    """Lay out all pictures of a batch.

    Args:
        spatial_crop: int [B, max_images, 2], width and height in tiles; [0, 0] where there is no picture.
        seq_mask: bool [B, T], True on image tokens.
        max_tiles: tiles per sample in the picture tensor.
        side: image tokens along one side of a tile.

    Raises:
        ValueError: a sample's mask has another number of image tokens than its grids, or its grids want more
            tiles than the picture tensor has; the message has both numbers.
    """
    tiles, sources, num_tiles = [], [], 0
    for sample, grids in enumerate(spatial_crop):
        used, wanted = 0, 0
        for width_tiles, height_tiles in grids[grids.all(axis=1)].tolist():
            spans = image_token_sources(width_tiles, height_tiles, side)
            sources.append(np.where(spans < 0, spans, spans + (num_tiles + used) * side * side))
            used += 1 + width_tiles * height_tiles
            wanted += len(spans)
        _check_counts(sample, wanted, int(seq_mask[sample].sum()), used, max_tiles)
        tiles.append(sample * max_tiles + np.arange(used))
        num_tiles += used
    sources = np.concatenate(sources) if sources else np.zeros(0, np.int64)
    newline_row = num_tiles * side * side
    sources = np.where(
        sources == NEWLINE, newline_row, np.where(sources == SEPARATOR, newline_row + 1, sources)
    )
    return FusionPlan(np.concatenate(tiles), sources, np.flatnonzero(seq_mask))


def _check_counts(sample: int, wanted: int, marked: int, used: int, max_tiles: int) -> None:
    if wanted != marked:
        raise ValueError(
            f"sample {sample}: images_spatial_crop stands for {wanted} image tokens, "
            f"but images_seq_mask marks {marked}; both must come from the same processor call"
        )
    if used > max_tiles:
        raise ValueError(
            f"sample {sample}: images_spatial_crop stands for {used} tiles, "
            f"but images holds {max_tiles} per sample"
        )


def place_image_tokens(
    embeddings: paddle.Tensor,
    features: paddle.Tensor,
    newline: paddle.Tensor,
    separator: paddle.Tensor,
    plan: FusionPlan,
) -> paddle.Tensor:
    """Overwrite the marked positions with image tokens.

    Args:
        embeddings: text embeddings [B, T, H].
        features: projected tiles [I, side * side, H].
        newline, separator: the learned vectors [H] (``image_newline``, ``view_seperator``).

    Returns:
        [B, T, H], a new tensor.
    """
    rows = paddle.concat([features.flatten(stop_axis=1), newline.unsqueeze(0), separator.unsqueeze(0)])
    tokens = paddle.gather(rows, device.to_tensor(plan.sources))
    flat = embeddings.flatten(stop_axis=1)
    return paddle.scatter(flat, device.to_tensor(plan.positions), tokens).reshape(embeddings.shape)
