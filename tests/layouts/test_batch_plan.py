"""Positions, lengths, segments and targets of batches, worked out by hand."""

import numpy as np
import pytest

from paddlemix_vl2.layouts.batch_plan import plan_rows, plan_segments
from paddlemix_vl2.layouts.fusion_plan import plan_fusion
from paddlemix_vl2.layouts.tiles import TileLayout

FUSION = plan_fusion(TileLayout(1), np.array([[[1, 1]]]), np.ones([1, 5], bool), max_views=2)


def test_rows_of_one_sample():
    plan = plan_rows([2, 0, 4], 5)
    assert plan.position_ids.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]
    assert plan.padding.tolist() == [2, 0, 4]
    assert plan.seqlens == ()
    # Padding counts to its row, as in the published balance loss.
    assert plan.segments.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert plan.num_segments == 3
    assert plan.fusion is None and plan.targets is None


@pytest.mark.parametrize("padding", [(1, 0), [1, 0], np.array([1, 0], np.int32)])
def test_padding_of_any_kind_becomes_int64(padding):
    plan = plan_rows(padding, 3)
    assert plan.padding.dtype == plan.position_ids.dtype == plan.segments.dtype == np.int64
    assert plan.position_ids.tolist() == [[0, 0, 1], [0, 1, 2]]


def test_a_single_row_without_padding():
    plan = plan_rows([0], 4)
    assert plan.position_ids.tolist() == [[0, 1, 2, 3]] and plan.num_segments == 1


def test_targets_are_places_whose_next_token_is_learned():
    labels = np.array([[5, -100, 7, 8], [-100, -100, -100, 9]])
    # Of row 0 the next tokens are -100, 7, 8, of row 1 they are -100, -100, 9; three places in each row.
    assert plan_rows([0, 1], 4, labels=labels).targets.tolist() == [1, 2, 3 + 2]
    assert plan_segments(np.array([[1, 1, 1, 1], [0, 1, 1, 1]]), labels=labels).targets.tolist() == [1, 2, 5]


def test_nothing_is_learned():
    labels = np.full([2, 3], -100)
    assert plan_rows([0, 0], 3, labels=labels).targets.tolist() == []
    assert plan_rows([0, 0], 3, labels=labels).targets.dtype == np.int64


def test_packed_rows():
    plan = plan_segments(np.array([[1, 1, 1, 2, 2, 3], [0, 0, 1, 1, 2, 2]]))
    assert plan.position_ids.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 0, 1, 0, 1]]
    assert plan.padding.tolist() == [0, 0]
    assert plan.seqlens == (3, 2, 1, 2, 2, 2)  # the fourth is padding
    assert plan.segments.tolist() == [0, 0, 0, 1, 1, 2, -1, -1, 3, 3, 4, 4]
    assert plan.num_segments == 5
    assert plan.fusion is None and plan.targets is None


def test_padding_behind_the_samples():
    plan = plan_segments(np.array([[1, 1, 2, 0, 0], [1, 1, 1, 1, 1]]))
    assert plan.seqlens == (2, 1, 2, 5)
    assert plan.segments.tolist() == [0, 0, 1, -1, -1, 2, 2, 2, 2, 2]
    assert plan.num_segments == 3


def test_samples_of_one_token():
    plan = plan_segments(np.array([[1, 2, 3]]))
    assert plan.position_ids.tolist() == [[0, 0, 0]]
    assert plan.seqlens == (1, 1, 1) and plan.segments.tolist() == [0, 1, 2]


def test_a_row_of_padding_only():
    plan = plan_segments(np.array([[1, 1], [0, 0], [1, 2]]))
    assert plan.seqlens == (2, 2, 1, 1)
    assert plan.segments.tolist() == [0, 0, -1, -1, 1, 2]
    assert plan.num_segments == 3


def test_samples_are_numbered_through_the_batch():
    plan = plan_segments(np.array([[0, 1, 1, 2], [1, 2, 3, 3], [0, 0, 0, 0], [0, 0, 1, 1]]))
    assert plan.segments.tolist() == [-1, 0, 0, 1, 2, 3, 4, 4, -1, -1, -1, -1, -1, -1, 5, 5]
    assert plan.num_segments == 6


def test_every_length_is_counted_once():
    generator = np.random.default_rng(0)
    rows = [np.sort(generator.integers(1, 6, 20)) for _ in range(4)]
    ids = np.array([np.unique(row, return_inverse=True)[1] + 1 for row in rows])
    plan = plan_segments(ids)
    assert sum(plan.seqlens) == ids.size and len(plan.seqlens) == plan.num_segments == ids.max(axis=1).sum()
    assert plan.position_ids.flatten().tolist() == [p for length in plan.seqlens for p in range(length)]
    counts = np.bincount(plan.segments)
    assert counts.tolist() == list(plan.seqlens)


@pytest.mark.parametrize(
    "make", [lambda: plan_rows([0], 5, FUSION), lambda: plan_segments(np.ones([1, 5], int), FUSION)]
)
def test_the_fusion_plan_is_passed_on(make):
    assert make().fusion is FUSION
