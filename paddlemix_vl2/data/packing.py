"""Samples into rows, rows into a batch of numpy arrays."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from paddlemix_vl2.layouts.batch_plan import plan_segments
from paddlemix_vl2.layouts.fusion_plan import Layout, plan_fusion
from paddlemix_vl2.processing.batching import Batch, Sample, pad_left, pad_right

PackedRow = Sequence[Sample]
Item = TypeVar("Item")


def sample_length(sample: Sample) -> int:
    """Tokens of a sample."""
    return len(sample.input_ids)


def pack_next_fit(
    items: Iterable[Item], sequence_length: int, length: Callable[[Any], int] = sample_length
) -> Iterator[list[Item]]:
    """Fill rows in order: an item that does not fit ends the row and begins the next one.

    A row depends on nothing before its first item, so a stream of rows can resume there. When a row is
    yielded, exactly one item behind it has been taken from ``items`` (none at their end).

    Args:
        items: samples, or anything that ``length`` measures.

    Raises:
        ValueError: an item is longer than a row.

    >>> list(pack_next_fit([3, 2, 4, 1, 5], 6, length=lambda item: item))
    [[3, 2], [4, 1], [5]]
    """
    row: list[Item] = []
    used = 0
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


def count_targets(sample: Sample, ignore_id: int) -> int:
    """Labels of a sample that are learned; the first never is."""
    return int(np.count_nonzero(sample.labels[1:] != ignore_id))


def collate(rows: Sequence[PackedRow], pad_id: int, ignore_id: int, layout: Layout) -> Batch:
    """One batch of packed rows. The first token of each sample is not learned: the sample before it must not
    learn to predict it.

    Args:
        rows: of training samples, one or several in each. A sample without pictures adds no view: the blank
            one that it carries would shift the views of the samples behind it. There is at least one view
            and one picture, of zeros.
        layout: of the image tokens.

    Raises:
        ValueError: no rows, a row without samples, or samples made for inference.
    """
    if not rows or not all(rows):
        raise ValueError("a batch needs at least one row, and a row at least one sample")
    if any(sample.inference_mode for row in rows for sample in row):
        raise ValueError("a sample is made with inference_mode=True; rows are of training samples")
    ids, is_image = ([_join(row, name) for row in rows] for name in ("input_ids", "images_seq_mask"))
    views, grids = ([_join_pictures(row, name) for row in rows] for name in ("images", "images_spatial_crop"))
    images, crop = pad_right(views, at_least=1), pad_right(grids, at_least=1)
    marks, segment_ids = pad_left(is_image, False), pad_left([_segment_ids(row) for row in rows], 0)
    labels = pad_left([_labels(row, ignore_id) for row in rows], ignore_id)
    # The views are the processor's, which repeats some of them.
    fusion = plan_fusion(layout, crop, marks, images.shape[1], drop_repeated=True)
    return Batch(
        input_ids=pad_left(ids, pad_id),
        images=images,
        images_seq_mask=marks,
        images_spatial_crop=crop,
        plan=plan_segments(segment_ids, fusion, labels),
        segment_ids=segment_ids,
        labels=labels,
    )


def _segment_ids(row: PackedRow) -> np.ndarray:
    return np.repeat(np.arange(1, len(row) + 1, dtype=np.int64), [sample_length(sample) for sample in row])


def _labels(row: PackedRow, ignore_id: int) -> np.ndarray:
    first = np.array([ignore_id], dtype=np.int64)
    return np.concatenate([part for sample in row for part in (first, sample.labels[1:])])


def _join(row: PackedRow, name: str) -> np.ndarray:
    return np.concatenate([getattr(sample, name) for sample in row])


def _join_pictures(row: PackedRow, name: str) -> np.ndarray:
    """Of the samples that have pictures; of length 0 where none has."""
    arrays = [getattr(sample, name) for sample in row]
    return np.concatenate([a if s.num_image_tokens else a[:0] for a, s in zip(arrays, row, strict=True)])
