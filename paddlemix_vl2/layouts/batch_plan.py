"""What the host knows of a batch, so that nothing has to be read back from the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddlemix_vl2.layouts.fusion_plan import FusionPlan

IGNORE_ID = -100


@dataclass(frozen=True)
class BatchPlan:
    """Of a batch of B rows and T positions.

    Attributes:
        position_ids: int64 [B, T], counted from 0 in every sample; padding does not count.
        padding: int64 [B], positions of padding in front of each row; 0 in packed rows, whose padding is a
            sample of ``seqlens``.
        seqlens: lengths of the samples, and of padding, row after row; empty where a row is one sample.
        segments: int64 [B * T], the sample of each position, numbered through over the batch, -1 on padding.
            Where a row is one sample it counts with its padding, as in the published balance loss.
        num_segments: samples.
        fusion: where image tokens come from and go to; None without pictures.
        targets: int64, places in [B, T - 1] whose next token has a label; None where there are no labels.
    """

    position_ids: np.ndarray
    padding: np.ndarray
    seqlens: tuple[int, ...]
    segments: np.ndarray
    num_segments: int
    fusion: FusionPlan | None = None
    targets: np.ndarray | None = None


def plan_rows(
    padding: Sequence[int] | np.ndarray,
    length: int,
    fusion: FusionPlan | None = None,
    labels: np.ndarray | None = None,
) -> BatchPlan:
    """Rows of one sample each, ``padding`` in front of them.

    Args:
        labels: int64 [B, T], not shifted.
    """
    in_front = np.asarray(padding, np.int64)
    position_ids = np.maximum(np.arange(length) - in_front[:, None], 0)
    segments = np.repeat(np.arange(len(in_front)), length)
    return BatchPlan(position_ids, in_front, (), segments, len(in_front), fusion, _targets(labels))


def plan_segments(
    segment_ids: np.ndarray, fusion: FusionPlan | None = None, labels: np.ndarray | None = None
) -> BatchPlan:
    """Packed rows.

    Args:
        segment_ids: int64 [B, T], 0 on padding, 1, 2, ... for the samples of a row, each in one piece.
        labels: int64 [B, T], not shifted.
    """
    seqlens: list[int] = []
    position_ids = np.empty_like(segment_ids)
    for row, positions in zip(segment_ids, position_ids, strict=True):
        starts = np.flatnonzero(np.diff(row, prepend=row[0] - 1))
        lengths = np.diff(starts, append=len(row))
        seqlens.extend(lengths.tolist())
        positions[:] = np.arange(len(row)) - np.repeat(starts, lengths)
    per_row = segment_ids.max(axis=1)
    before = (per_row.cumsum() - per_row)[:, None]
    segments = np.where(segment_ids > 0, segment_ids + before - 1, -1).flatten()
    none = np.zeros(len(segment_ids), np.int64)
    total = int(per_row.sum())
    return BatchPlan(position_ids, none, tuple(seqlens), segments, total, fusion, _targets(labels))


def _targets(labels: np.ndarray | None) -> np.ndarray | None:
    return None if labels is None else np.flatnonzero(labels[:, 1:] != IGNORE_ID)
