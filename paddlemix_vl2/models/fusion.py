"""Puts image features among the text embeddings, following the layout of ``image_layout``.

The plan is made on the host from the tile grids and the mask, both checked; the device then needs one gather
(which also lays out newlines and separators) and one out-of-place scatter, both with a full gradient. An
in-place ``masked_scatter_`` on a slice would lose the gradient and leave projector and vision tower
untrained.

The one tile of a picture of the smallest grid holds the same pixels as its global view: the vision tower
sees them once.
"""

from dataclasses import dataclass, replace

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
        lone: int64 [pictures of one tile], where in ``tiles`` that tile stands; its global view is before it.
    """

    tiles: np.ndarray
    sources: np.ndarray
    positions: np.ndarray
    lone: np.ndarray

    def leave_out(self, tiles: np.ndarray, side: int) -> "FusionPlan":
        """The same places without some of the tiles: each takes its features from the tile before it.

        Args:
            tiles: int64, where in ``self.tiles`` they stand, none of them first.
            side: image tokens along one side of a tile.
        """
        kept = np.ones(len(self.tiles), bool)
        kept[tiles] = False
        # The learned vectors stand behind the features, as rows of one more tile (of two, where side is 1).
        row_of = np.append(np.cumsum(kept) - 1, kept.sum() + np.arange(2))
        tile, row = np.divmod(self.sources, side * side)
        return replace(self, tiles=self.tiles[kept], sources=row_of[tile] * side * side + row)


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
    tiles, sources, lone, num_tiles = [], [], [], 0
    for sample, grids in enumerate(spatial_crop):
        used, wanted = 0, 0
        for width_tiles, height_tiles in grids[grids.all(axis=1)].tolist():
            spans = image_token_sources(width_tiles, height_tiles, side)
            sources.append(np.where(spans < 0, spans, spans + (num_tiles + used) * side * side))
            used += 1 + width_tiles * height_tiles
            if width_tiles == height_tiles == 1:
                lone.append(num_tiles + used - 1)
            wanted += len(spans)
        _check_counts(sample, wanted, int(seq_mask[sample].sum()), used, max_tiles)
        tiles.append(sample * max_tiles + np.arange(used))
        num_tiles += used
    sources = np.concatenate(sources) if sources else np.zeros(0, np.int64)
    newline_row = num_tiles * side * side
    sources = np.where(
        sources == NEWLINE, newline_row, np.where(sources == SEPARATOR, newline_row + 1, sources)
    )
    return FusionPlan(np.concatenate(tiles), sources, np.flatnonzero(seq_mask), np.array(lone, np.int64))


def equal_to_previous(tiles: paddle.Tensor, which: np.ndarray) -> np.ndarray:
    """Those of the tiles [I, 3, side, side] named by ``which`` that hold the pixels of the tile before them.
    Compared, not taken for granted: whoever makes a batch by other means may show a lone tile anything."""
    if not which.size:
        return which
    shown, before = (paddle.gather(tiles, device.to_tensor(index)) for index in (which, which - 1))
    return which[(shown == before).flatten(start_axis=1).all(axis=1).numpy()]


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
