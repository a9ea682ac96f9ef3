"""Samples into rows, rows into a batch of numpy arrays."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from paddlemix_vl2.processing.batching import Sample, pad_left, pad_right

Row = Sequence[Sample]


def sample_length(sample: Sample) -> int:
    """Tokens of a sample."""
    return len(sample.input_ids)


def pack_next_fit(
    items: Iterable[Any], sequence_length: int, length: Callable[[Any], int] = sample_length
) -> Iterator[list[Any]]:
    """Fill rows in order: an item that does not fit ends the row and begins the next one.

    A row depends on nothing before its first item, so a stream of rows goes on from there. When a row is
    given out, exactly one item behind it has been taken from ``items`` (none at their end).

    Args:
        items: samples, or anything that ``length`` measures.

    Raises:
        ValueError: an item is longer than a row.

    >>> list(pack_next_fit([3, 2, 4, 1, 5], 6, length=lambda item: item))
    [[3, 2], [4, 1], [5]]
    """
    row, used = [], 0
    for item in items:
        size = length(item)
        if size > sequence_length:
            raise ValueError(f"a sample has {size} tokens; a row has room for {sequence_length}")
        if used + size > sequence_length:
            yield row
            row, used = [], 0
        row.append(item)
        used += size
    if row:
        yield row


def count_supervised(sample: Sample, ignore_id: int) -> int:
    """Labels of a sample that are learned; the first never is."""
    return int(np.count_nonzero(sample.labels[1:] != ignore_id))


def collate(rows: Sequence[Row], pad_id: int, ignore_id: int) -> dict[str, np.ndarray]:
    """One batch (B rows, T tokens of the longest, N the most views of a row, P the most pictures of a row).

    Args:
        rows: of training samples, one or several in each. A sample without pictures adds no view: the blank
            one that it carries would shift the views of the samples behind it.

    Returns:
        input_ids            int64 [B, T], ``pad_id`` on the left
        segment_ids          int64 [B, T], 1, 2, ... for the samples of a row, 0 on padding
        images               float32 [B, N, 3, S, S], unused views zero; N is at least 1
        images_seq_mask      bool [B, T]
        images_spatial_crop  int64 [B, P, 2], unused rows [0, 0]; P is at least 1
        labels               int64 [B, T], not shifted; ``ignore_id`` on padding and on the first token of
                             each sample, which the sample before it must not learn to predict

    Raises:
        ValueError: no rows, a row without samples, or samples made for inference.
    """
    if not rows or not all(rows):
        raise ValueError("a batch needs at least one row, and a row at least one sample")
    if any(sample.inference_mode for row in rows for sample in row):
        raise ValueError("a sample is made with inference_mode=True; rows are of training samples")
    ids, is_image = ([_join(row, name) for row in rows] for name in ("input_ids", "images_seq_mask"))
    views, grids = ([_join_pictures(row, name) for row in rows] for name in ("images", "images_spatial_crop"))
    return {
        "input_ids": pad_left(ids, pad_id),
        "segment_ids": pad_left([_segment_ids(row) for row in rows], 0),
        "images": pad_right(views, at_least=1),
        "images_seq_mask": pad_left(is_image, False),
        "images_spatial_crop": pad_right(grids, at_least=1),
        "labels": pad_left([_labels(row, ignore_id) for row in rows], ignore_id),
    }


def _segment_ids(row: Row) -> np.ndarray:
    return np.repeat(np.arange(1, len(row) + 1, dtype=np.int64), [sample_length(sample) for sample in row])


def _labels(row: Row, ignore_id: int) -> np.ndarray:
    first = np.array([ignore_id], dtype=np.int64)
    return np.concatenate([part for sample in row for part in (first, sample.labels[1:])])


def _join(row: Row, name: str) -> np.ndarray:
    return np.concatenate([getattr(sample, name) for sample in row])


def _join_pictures(row: Row, name: str) -> np.ndarray:
    """Of the samples that have pictures; of length 0 where none has."""
    arrays = [getattr(sample, name) for sample in row]
    return np.concatenate([a if s.num_image_tokens else a[:0] for a, s in zip(arrays, row, strict=True)])
