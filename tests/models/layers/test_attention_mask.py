"""Masks by hand: what the builders make of padding, samples, caches and tensors."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.layers.attention_mask import (
    MASK_VALUE,
    QUERY_BLOCK,
    CausalMask,
    DecodeMask,
    DenseMask,
    PaddedMask,
    SegmentMask,
    cache_mask,
    left_padding,
    padding_mask,
    segment_mask,
    tensor_mask,
)
from paddlemix_vl2.models.layers.attention_ops import dense_mask
from paddlemix_vl2.models.layers.kv_cache import ModelCache


def seen(bias) -> list:
    """1 where a bias lets a query see the key."""
    return (bias == 0).astype("int64").tolist()


def test_padding():
    assert padding_mask([0, 0], 4, start=3) == CausalMask(3)
    mask = padding_mask([3, 1], 4)
    assert isinstance(mask, PaddedMask) and (mask.start, mask.padded_queries) == (0, 3)
    assert mask.key_mask.astype("int64").tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]
    later = padding_mask([3, 1], 2, start=2)
    assert (later.start, later.padded_queries) == (2, 1)
    assert later.key_mask.astype("int64").tolist() == [[0, 0, 0, 1], [0, 1, 1, 1]]
    assert padding_mask([1, 0], 2, start=2).padded_queries == 0


def test_samples_of_packed_rows():
    mask = segment_mask([2, 3, 1, QUERY_BLOCK + 1])
    assert isinstance(mask, SegmentMask) and mask.seqlens == (2, 3, 1, QUERY_BLOCK + 1)
    assert seen(mask.biases[1]) == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert [None if bias is None else bias.shape for bias in mask.biases] == [[2, 2], [3, 3], [1, 1], None]
    assert float(mask.biases[0].min()) == np.float32(MASK_VALUE)


@pytest.fixture
def cache(language_config):
    """``cache(padding, length)``: of seven positions, ``length`` of them filled."""

    def make(padding, length) -> ModelCache:
        made = ModelCache(language_config(), padding, prompt_length=4, capacity=7)
        made.length = length
        return made

    return make


def test_a_prompt_in_a_cache(cache):
    assert cache_mask(cache([0, 0], 0), 4) == CausalMask(0)
    assert cache_mask(cache([0, 0], 2), 2) == CausalMask(2)
    mask = cache_mask(cache([1, 0], 2), 2)
    assert isinstance(mask, PaddedMask) and mask.start == 2
    assert mask.key_mask.astype("int64").tolist() == [[0, 1, 1, 1, 1, 1, 1], [1] * 7]
    # One position is a decode step behind others only.
    assert cache_mask(cache([0], 0), 1) == CausalMask(0)


def test_a_decode_step(cache):
    mask = cache_mask(cache([0, 0], 4), 1)
    assert isinstance(mask, DecodeMask) and mask.start == 4 and mask.key_mask is None
    assert mask.bias.shape == [7] and seen(mask.bias) == [1, 1, 1, 1, 1, 0, 0]
    padded = cache_mask(cache([2, 0], 4), 1)
    assert padded.bias.shape == [2, 1, 1, 7] and padded.key_mask.shape == [2, 7]
    assert seen(padded.bias[:, 0, 0]) == [[0, 0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0, 0]]


def test_tensors():
    assert tensor_mask(paddle.ones([2, 5], "int64"), 3, start=2) == CausalMask(2)
    mask = tensor_mask(paddle.to_tensor([[0, 0, 1], [1, 1, 1]]), 3)
    assert isinstance(mask, PaddedMask) and mask.padded_queries == 2
    added = paddle.to_tensor([[[[0.0, -float("inf")], [0.0, 0.0]]]])
    dense = tensor_mask(added, 2)
    assert isinstance(dense, DenseMask) and seen(dense.bias) == [[[[1, 0], [1, 1]]]]
    assert float(dense.bias.min()) == np.float32(MASK_VALUE), "a row that sees nothing must not become NaN"


@pytest.mark.parametrize("shape", [[2, 4], [3], [2, 3, 5]])
def test_tensors_of_another_shape(shape):
    with pytest.raises(ValueError, match=r"attention_mask has the shape .*; it must be \[B, 5\], or \[B, 1"):
        tensor_mask(paddle.ones(shape, "int64"), 3, start=2)


@pytest.mark.parametrize("row", [[1, 1, 0], [0, 1, 0, 1][:3], [1, 0, 1]])
def test_padding_elsewhere_is_refused(row):
    with pytest.raises(ValueError, match="padding must be on the left"):
        tensor_mask(paddle.to_tensor([row]), 3)


def test_padding_is_counted():
    rows = np.array([[0, 0, 1], [1, 1, 1], [0, 0, 0]], bool)
    assert left_padding(rows).tolist() == [2, 0, 3]


def test_a_dense_mask_by_hand():
    """A row for every sequence, padded queries included; nothing where fused attention is causal itself."""
    assert dense_mask(CausalMask(), 2, 3, 3, "float32") == CausalMask()
    causal = dense_mask(CausalMask(1), 2, 2, 3, "float32")
    assert causal.start == 1 and seen(causal.bias) == [[[[1, 1, 0], [1, 1, 1]]]] * 2
    padded = dense_mask(padding_mask([2, 0], 3), 2, 3, 3, "float32")
    assert seen(padded.bias) == [[[[0, 0, 0], [0, 0, 0], [0, 0, 1]]], [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]]
    packed = dense_mask(segment_mask([1, 2, 3]), 2, 3, 3, "float32")
    assert seen(packed.bias) == [[[[1, 0, 0], [0, 1, 0], [0, 1, 1]]], [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]]
    again = dense_mask(packed, 2, 3, 3, "float32")
    assert np.array_equal(again.bias.numpy(), packed.bias.numpy())


def test_a_decode_step_needs_no_dense_mask(cache):
    mask = cache_mask(cache([1, 0], 4), 1)
    assert dense_mask(mask, 2, 1, 5, "float32") is mask


def test_a_cache_longer_than_what_is_filled(cache):
    """The mask is as wide as the keys so far, not as the capacity."""
    dense = dense_mask(cache_mask(cache([1, 0], 2), 2), 2, 2, 4, "float32")
    assert seen(dense.bias) == [[[[0, 1, 1, 0], [0, 1, 1, 1]]], [[[1, 1, 1, 0], [1, 1, 1, 1]]]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bits_hold_the_masked_value(dtype):
    """And a score beside it: -inf in a whole row would become NaN."""
    bias = dense_mask(padding_mask([2, 0], 3), 2, 3, 3, getattr(paddle, dtype)).bias
    assert bias.dtype == getattr(paddle, dtype)
    assert (
        bool(paddle.isfinite(bias.astype("float32") * 1.5).all())
        and float(bias.astype("float32").min()) < -3e4
    )
