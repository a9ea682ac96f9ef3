"""Rows and batches, worked out by hand."""

import numpy as np
import pytest

from paddlemix_vl2.data import collate, pack_next_fit
from paddlemix_vl2.processing import Sample, pad_samples

IMAGE = 7


class OneToken:
    """A picture is one image token, of its global view; the one tile of the smallest grid repeats it."""

    num_features = 1
    num_vectors = 0

    def num_tokens(self, grid):
        return 1

    def num_views(self, grid):
        return 1 + grid[0] * grid[1]

    def sources(self, grid):
        return np.array([0])

    def repeated_views(self, grid):
        return (1,) if grid == (1, 1) else ()


def make_sample(ids, grids=(), inference_mode=False, blank=True) -> Sample:
    """Token 7 is an image token; views are numbered from 100 times the first id."""
    ids = np.array(ids, dtype=np.int64)
    views = sum(1 + width * height for width, height in grids) or int(blank)
    first = 100 * ids[0] if grids else 0
    images = (first + np.arange(views, dtype=np.float32))[:, None, None, None] * np.ones(
        (1, 3, 2, 2), "float32"
    )
    return Sample(
        input_ids=ids,
        labels=np.where(ids == IMAGE, -100, ids * 10),
        images=images,
        images_seq_mask=ids == IMAGE,
        images_spatial_crop=np.array(grids or [(0, 0)], dtype=np.int64),
        num_image_tokens=[1] * len(grids),
        inference_mode=inference_mode,
    )


def test_next_fit_by_hand():
    def rows(lengths, size):
        return list(pack_next_fit(lengths, size, length=lambda item: item))

    assert rows([3, 2, 4, 1, 5], 6) == [[3, 2], [4, 1], [5]]
    assert rows([6, 6, 1], 6) == [[6], [6], [1]]
    assert rows([2, 2, 2, 2], 6) == [[2, 2, 2], [2]]
    assert rows([5, 1, 5, 1], 6) == [[5, 1], [5, 1]]
    assert rows([], 6) == []
    with pytest.raises(ValueError, match="a sample has 7 tokens; a row has room for 6"):
        rows([1, 7], 6)


def test_rows_go_on_from_any_rows_first_item():
    lengths = np.random.default_rng(0).integers(1, 20, 100).tolist()
    rows = list(pack_next_fit(lengths, 30, length=lambda item: item))
    for index in range(len(rows)):
        rest = lengths[sum(len(row) for row in rows[:index]) :]
        assert list(pack_next_fit(rest, 30, length=lambda item: item)) == rows[index:]


def test_one_item_is_taken_behind_a_row():
    items = iter([3, 3, 3, 3])
    rows = pack_next_fit(items, 6, length=lambda item: item)
    assert next(rows) == [3, 3] and list(items) == [3]


def test_samples_measure_themselves():
    samples = [make_sample([1] * length) for length in (3, 2, 4)]
    assert [[len(s.input_ids) for s in row] for row in pack_next_fit(samples, 6)] == [[3, 2], [4]]


def test_collate_by_hand():
    rows = [
        [make_sample([1, 7, 5], [(1, 1)]), make_sample([2, 6]), make_sample([3, 7, 7], [(2, 1), (1, 1)])],
        [make_sample([4, 5, 6])],
    ]
    batch = collate(rows, 9, -100, OneToken())
    assert batch["input_ids"].tolist() == [[1, 7, 5, 2, 6, 3, 7, 7], [9, 9, 9, 9, 9, 4, 5, 6]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2, 3, 3, 3], [0, 0, 0, 0, 0, 1, 1, 1]]
    assert batch["labels"].tolist() == [
        [-100, -100, 50, -100, 60, -100, -100, -100],
        [-100] * 5 + [-100, 50, 60],
    ]
    assert batch["images_seq_mask"].astype(int).tolist() == [[0, 1, 0, 0, 0, 0, 1, 1], [0] * 8]
    assert batch["images_spatial_crop"].tolist() == [[[1, 1], [2, 1], [1, 1]], [[0, 0]] * 3]
    # Two views of the first picture, then those of the third sample: the blank view between them is gone.
    assert batch["images"][:, :, 0, 0, 0].tolist() == [[100, 101, 300, 301, 302, 303, 304], [0] * 7]
    assert batch["images"].shape == (2, 7, 3, 2, 2)
    assert "attention_mask" not in batch and batch["plan"] is batch.plan
    assert {name: array.dtype.name for name, array in batch.items() if name != "plan"} == {
        "input_ids": "int64",
        "segment_ids": "int64",
        "images": "float32",
        "images_seq_mask": "bool",
        "images_spatial_crop": "int64",
        "labels": "int64",
    }


def test_the_plan_of_collated_rows_by_hand():
    rows = [
        [make_sample([1, 7, 5], [(1, 1)]), make_sample([2, 6]), make_sample([3, 7, 7], [(2, 1), (1, 1)])],
        [make_sample([4, 5, 6])],
    ]
    plan = collate(rows, 9, -100, OneToken()).plan
    assert plan.seqlens == (3, 2, 3, 5, 3)  # the padding of the second row is one of them
    assert plan.position_ids[0].tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert plan.position_ids[1, 5:].tolist() == [0, 1, 2]
    assert plan.segments.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, *[-1] * 5, 3, 3, 3]
    assert (plan.num_segments, plan.padding.tolist()) == (4, [0, 0])
    assert plan.targets.tolist() == [1, 3, 7 + 5, 7 + 6]
    # Of the views 0 1 | 2 3 4 | 5 6 those that repeat the one before are left out: 1 and 6.
    assert plan.fusion.views.tolist() == [0, 2, 3, 4, 5]
    assert plan.fusion.sources.tolist() == [0, 1, 4]
    assert plan.fusion.positions.tolist() == [1, 6, 7]


@pytest.mark.parametrize("blank", [True, False])
def test_text_only_batch(blank):
    rows = [[make_sample([1, 2], blank=blank)], [make_sample([3], blank=blank)]]
    batch = collate(rows, 9, -100, OneToken())
    assert batch["images"].shape == (2, 1, 3, 2, 2) and not batch["images"].any()
    assert batch["images_spatial_crop"].tolist() == [[[0, 0]], [[0, 0]]]
    assert batch["segment_ids"].tolist() == [[1, 1], [0, 1]]
    assert batch.plan.fusion is None and batch.plan.targets.tolist() == [0]


def test_rows_of_one_sample_equal_the_processors_batch():
    samples = [make_sample([1, 7, 5], [(1, 1)]), make_sample([2, 6, 6, 6]), make_sample([3, 7], [(2, 1)])]
    padded = pad_samples(samples, 9, -100, OneToken())
    collated = collate([[sample] for sample in samples], 9, -100, OneToken())
    used = padded["attention_mask"] > 0
    assert (used == (collated["segment_ids"] > 0)).all()
    arrays = padded.keys() - {"attention_mask", "plan"}
    assert arrays == collated.keys() - {"segment_ids", "plan"}
    assert all((padded[name] == collated[name]).all() for name in arrays)
    for name in ("views", "sources", "positions"):
        assert (getattr(padded.plan.fusion, name) == getattr(collated.plan.fusion, name)).all()
    assert (padded.plan.targets == collated.plan.targets).all()
    assert (padded.plan.position_ids == collated.plan.position_ids)[used].all()
    assert padded.plan.seqlens == () and padded.plan.padding.tolist() == [1, 0, 2]


def test_bad_rows():
    for rows in ([], [[]], [[make_sample([1])], []]):
        with pytest.raises(ValueError, match="at least one"):
            collate(rows, 9, -100, OneToken())
    with pytest.raises(ValueError, match="inference_mode=True"):
        collate([[make_sample([1], inference_mode=True)]], 9, -100, OneToken())
