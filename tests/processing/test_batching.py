"""Padding, worked out by hand."""

import numpy as np
import pytest

from paddlemix_vl2.processing import Sample, pad_samples


class TokenPerTile:
    """An image token for each tile, none for the global view, which the tile of the smallest grid repeats."""

    num_features = 1
    num_vectors = 0

    def num_tokens(self, grid):
        return grid[0] * grid[1]

    def num_views(self, grid):
        return 1 + grid[0] * grid[1]

    def sources(self, grid):
        return 1 + np.arange(grid[0] * grid[1])

    def repeated_views(self, grid):
        return (1,) if grid == (1, 1) else ()


LAYOUT = TokenPerTile()


def make_sample(ids, views, grids, inference_mode=False) -> Sample:
    ids = np.array(ids, dtype=np.int64)
    return Sample(
        input_ids=ids,
        labels=ids * 10,
        images=np.full((views, 3, 2, 2), views, dtype=np.float32),
        images_seq_mask=ids == 7,
        images_spatial_crop=np.array(grids, dtype=np.int64),
        num_image_tokens=[],
        inference_mode=inference_mode,
    )


def test_left_padding_by_hand():
    first = make_sample([1, 7, 5], 2, [[1, 1]])
    second = make_sample([1, 7, 7, 7, 6], 5, [[2, 1], [1, 1]])
    batch = pad_samples([first, second], pad_id=2, ignore_id=-100, layout=LAYOUT)
    assert batch["input_ids"].tolist() == [[2, 2, 1, 7, 5], [1, 7, 7, 7, 6]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert batch["images_seq_mask"].astype(int).tolist() == [[0, 0, 0, 1, 0], [0, 1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, -100, 70, 50], [-100, 70, 70, 70, 60]]
    assert batch["images_spatial_crop"].tolist() == [[[1, 1], [0, 0]], [[2, 1], [1, 1]]]
    assert batch["images"][:, :, 0, 0, 0].tolist() == [[2, 2, 0, 0, 0], [5, 5, 5, 5, 5]]
    assert [batch[name].dtype.name for name in ("attention_mask", "images_seq_mask", "images")] == [
        "int64",
        "bool",
        "float32",
    ]


def test_the_plan_by_hand():
    first = make_sample([1, 7, 5], 2, [[1, 1]])
    second = make_sample([1, 7, 7, 7, 6], 5, [[2, 1], [1, 1]])
    batch = pad_samples([first, second], 2, -100, LAYOUT)
    plan = batch["plan"]
    assert plan is batch.plan
    assert plan.position_ids.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert plan.padding.tolist() == [2, 0] and plan.seqlens == ()
    # A row counts with its padding.
    assert plan.segments.tolist() == [0] * 5 + [1] * 5 and plan.num_segments == 2
    assert plan.targets.tolist() == [2, 3, 4, 5, 6, 7]
    # Each row has room for five views. Views 1 and 9 repeat the ones before them.
    assert plan.fusion.views.tolist() == [0, 5, 6, 7, 8]
    assert plan.fusion.sources.tolist() == [0, 2, 3, 4]
    assert plan.fusion.positions.tolist() == [3, 6, 7, 8]


def test_inference_has_no_labels():
    batch = pad_samples([make_sample([1], 1, [[0, 0]], inference_mode=True)], 2, -100, LAYOUT)
    assert "labels" not in batch
    with pytest.raises(AttributeError, match="the batch has no labels"):
        _ = batch.labels
    assert batch.plan.targets is None and batch.plan.fusion is None


def test_a_batch_is_a_mapping_of_what_is_there():
    batch = pad_samples([make_sample([1], 1, [[0, 0]], inference_mode=True)], 2, -100, LAYOUT)
    names = ["input_ids", "images", "images_seq_mask", "images_spatial_crop", "plan", "attention_mask"]
    assert list(batch) == names and len(batch) == 6
    for name in ("labels", "segment_ids", "to_tensors", "other"):
        assert name not in batch and batch.get(name) is None
        with pytest.raises(KeyError, match=name):
            batch[name]
    assert {**batch} == dict(batch.items())
    assert all(getattr(batch, name) is batch[name] for name in names)


def test_tensors_of_a_batch():
    batch = pad_samples([make_sample([1, 7, 5], 2, [[1, 1]])], 2, -100, LAYOUT)
    tensors = batch.to_tensors()
    assert list(tensors) == list(batch) and tensors.plan is batch.plan
    assert not hasattr(tensors, "segment_ids")
    for name, array in batch.items():
        if name != "plan":
            assert np.array_equal(tensors[name].numpy(), array)
            assert str(tensors[name].dtype) == f"paddle.{array.dtype}"


def test_image_tokens_that_the_grids_do_not_have():
    with pytest.raises(ValueError, match=r"sample 0: .* stands for 1 image tokens, but .* marks 2"):
        pad_samples([make_sample([7, 7], 2, [[1, 1]])], 2, -100, LAYOUT)


def test_bad_batches():
    with pytest.raises(ValueError, match="at least one sample"):
        pad_samples([], 2, -100, LAYOUT)
    mixed = [make_sample([1], 1, [[0, 0]], inference_mode=mode) for mode in (True, False, False)]
    with pytest.raises(ValueError, match="1 of 3 samples are made with inference_mode=True"):
        pad_samples(mixed, 2, -100, LAYOUT)
