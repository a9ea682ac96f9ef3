"""Padding, worked out by hand."""

import numpy as np
import pytest

from paddlemix_vl2.processing import Sample, pad_samples


def make_sample(ids, views, grids, inference_mode=False) -> Sample:
    ids = np.array(ids, dtype=np.int64)
    return Sample(
        input_ids=ids,
        labels=ids * 10,
        images=np.full((views, 3, 2, 2), views, dtype=np.float32),
        images_seq_mask=ids == 7,
        images_spatial_crop=np.array(grids, dtype=np.int64),
        num_image_tokens=[],
        text="",
        inference_mode=inference_mode,
    )


def test_left_padding_by_hand():
    first = make_sample([1, 7, 5], 2, [[1, 1]])
    second = make_sample([1, 7, 7, 7, 6], 5, [[2, 1], [1, 1]])
    batch = pad_samples([first, second], pad_id=2, ignore_id=-100)
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


def test_inference_has_no_labels():
    batch = pad_samples([make_sample([1], 1, [[0, 0]], inference_mode=True)], 2, -100)
    assert "labels" not in batch


def test_bad_batches():
    with pytest.raises(ValueError, match="at least one sample"):
        pad_samples([], 2, -100)
    mixed = [make_sample([1], 1, [[0, 0]], inference_mode=mode) for mode in (True, False, False)]
    with pytest.raises(ValueError, match="1 of 3 samples are made with inference_mode=True"):
        pad_samples(mixed, 2, -100)
