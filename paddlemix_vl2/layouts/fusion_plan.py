"""Where the image tokens of a batch come from and go to. Computed on the host from tile grids and mask.

The device then needs one gather (which also lays out newlines and separators) and one out-of-place scatter,
both with a full gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Layout(Protocol):
    """What the image tokens of a picture are; its grid is (tiles in width, tiles in height).

    Attributes:
        num_features: features of one view.
        num_vectors: learned vectors; a source of -1 is the first of them, -2 the second.
    """

    @property
    def num_features(self) -> int: ...

    @property
    def num_vectors(self) -> int: ...

    def num_tokens(self, grid: tuple[int, int]) -> int:
        """Length of the picture's token span."""

    def num_views(self, grid: tuple[int, int]) -> int:
        """Views of the picture that the vision encoder sees."""

    def sources(self, grid: tuple[int, int]) -> np.ndarray:
        """int64 [num_tokens]: rows of the picture's features [num_views * num_features], or vectors."""

    def repeated_views(self, grid: tuple[int, int]) -> Sequence[int]:
        """Views that show the pixels of the one before, where the processor has made them."""


@dataclass(frozen=True)
class FusionPlan:
    """Attributes:
    views: int64 [I], rows of the batch's views flattened from [B, max_views], that go to the encoder.
    sources: int64 [image tokens], rows of the features [I * num_features], then of the learned vectors.
    positions: int64 [image tokens], rows of the embeddings flattened from [B, T].
    """

    views: np.ndarray
    sources: np.ndarray
    positions: np.ndarray


def plan_fusion(
    layout: Layout,
    spatial_crop: np.ndarray,
    seq_mask: np.ndarray,
    max_views: int,
    drop_repeated: bool = False,
) -> FusionPlan | None:
    """Lay out all pictures of a batch; None where there is none.

    Args:
        layout: of the model family.
        spatial_crop: int [B, max_images, 2], width and height in tiles; [0, 0] where there is no picture.
        seq_mask: bool [B, T], True on image tokens.
        max_views: views per sample in the picture tensor.
        drop_repeated: whether to encode a view that repeats the one before only once. Only for views that the
            processor has made.

    Raises:
        ValueError: a sample's mask has another number of image tokens than its grids, or its grids want more
            views than the picture tensor has; the message has both numbers.
    """
    if not spatial_crop.any():
        if seq_mask.any():
            raise ValueError(
                "images_seq_mask marks image tokens, but images or images_spatial_crop holds no picture"
            )
        return None
    views: list[int] = []
    sources: list[np.ndarray] = []
    num_features = layout.num_features
    for sample, grids in enumerate(spatial_crop):
        used, wanted = 0, 0
        for width, height in grids[grids.all(axis=1)].tolist():
            grid, first = (width, height), sample * max_views + used
            seen = np.ones(layout.num_views(grid), bool)
            if drop_repeated:
                seen[list(layout.repeated_views(grid))] = False
            row_of = len(views) + np.cumsum(seen) - 1  # of each view among all that are seen
            spans = layout.sources(grid)
            view, row = np.divmod(np.maximum(spans, 0), num_features)
            sources.append(np.where(spans < 0, spans, row_of[view] * num_features + row))
            views.extend((first + np.flatnonzero(seen)).tolist())
            used += len(seen)
            wanted += len(spans)
        _check_counts(sample, wanted, int(seq_mask[sample].sum()), used, max_views)
    flat = np.concatenate(sources)
    num_rows = len(views) * num_features
    flat = np.where(flat < 0, num_rows - flat - 1, flat)
    return FusionPlan(np.array(views, np.int64), flat.astype(np.int64), np.flatnonzero(seq_mask))


def _check_counts(sample: int, wanted: int, marked: int, used: int, max_views: int) -> None:
    if wanted != marked:
        raise ValueError(
            f"sample {sample}: images_spatial_crop stands for {wanted} image tokens, "
            f"but images_seq_mask marks {marked}; both must come from the same processor call"
        )
    if used > max_views:
        raise ValueError(
            f"sample {sample}: images_spatial_crop stands for {used} tiles, "
            f"but images holds {max_views} per sample"
        )
