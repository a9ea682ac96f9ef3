"""Every recorded conversation of the published processor, exact."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from paddlemix_vl2.processing import DeepseekVLV2Processor

RECORDED = Path(__file__).parents[1] / "golden" / "processor.json"
ENTRIES = [entry for entry in json.loads(RECORDED.read_text()) if "conversations" in entry]


def run_lengths(values) -> list[list[int]]:
    return [[int(value), len(list(group))] for value, group in itertools.groupby(values)]


def true_runs(mask) -> list[list[int]]:
    """[start, length] of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [[int(start), int(end - start)] for start, end in edges.reshape(-1, 2)]


def name_of(entry: dict) -> str:
    return f"{entry['name']}-{entry['tokenizer']}-{'masked' if entry['mask_prompt'] else 'all'}"


def test_all_entries_are_here():
    assert len(ENTRIES) == len({name_of(entry) for entry in ENTRIES}) == 28


@pytest.mark.parametrize("entry", ENTRIES, ids=name_of)
def test_as_recorded(entry, golden, tokenizers, published_settings):
    settings = {**published_settings, "mask_prompt": entry["mask_prompt"]}
    processor = DeepseekVLV2Processor(tokenizers[entry["tokenizer"]], **settings)
    conversation = [
        {**message, "images": [golden / "images" / name for name in message.get("images", [])]}
        for message in entry["conversations"]
    ]
    sample = processor.process_one(conversation, inference_mode=entry["inference_mode"])
    assert run_lengths(sample.input_ids) == entry["input_ids_rle"]
    assert run_lengths(sample.labels) == entry["labels_rle"]
    # Two pictures side by side would be one run; every recorded pair has text between.
    assert true_runs(sample.images_seq_mask) == entry["images_seq_mask_runs"]
    assert sample.images_spatial_crop.tolist() == entry["images_spatial_crop"]
    assert sample.num_image_tokens == entry["num_image_tokens"]
    assert list(sample.images.shape) == entry["images_shape"]
    flat = sample.images.reshape(len(sample.images), -1)
    # Recorded values are rounded to six digits; float32 normalisation adds less than 1e-6.
    for view, expected in zip(flat, entry["images_samples"], strict=True):
        assert np.abs(view[::52501][:8] - expected).max() < 1e-5
    assert np.abs(flat.mean(axis=1, dtype=np.float64) - entry["images_mean"]).max() < 1e-5
    assert np.abs(flat.std(axis=1, dtype=np.float64) - entry["images_std"]).max() < 1e-5
