"""Blocked and fused attention against the whole score matrix in numpy, and against each other."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.layers import attention_mask, attention_ops
from paddlemix_vl2.models.layers.attention_mask import (
    MASK_VALUE,
    CausalMask,
    DenseMask,
    padding_mask,
    segment_mask,
    tensor_mask,
)
from paddlemix_vl2.models.layers.attention_ops import (
    attention_weights,
    blocked_causal_attention,
    dense_mask,
    full_attention,
    fused_causal_attention,
    masked_softmax,
)

# float32 sums in another order, of values of order one.
CLOSE = 1e-5


def random(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def reference(queries, keys, values, visible, scale):
    """Whole-matrix attention, [B, T, N, Dv]; queries that see nothing are even over all keys.

    ``visible`` bool [B, T, S].
    """
    scores = np.einsum("btnd,bsnd->bnts", queries, keys).astype(np.float64) * scale
    visible = visible[:, None]
    scores = np.where(visible | ~visible.any(axis=-1, keepdims=True), scores, -np.inf)
    scores = np.where(visible.any(axis=-1, keepdims=True), scores, 0.0)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bnts,bsnd->btnd", weights / weights.sum(axis=-1, keepdims=True), values)


def causal(batch, length, start, padding=0):
    """bool [B, T, S], with padding in front of the first row."""
    rows, columns = np.arange(length)[:, None] + start, np.arange(start + length)[None]
    visible = np.repeat((columns <= rows)[None], batch, axis=0)
    visible[0, :, :padding] = False
    return visible


def inputs(length, start, value_dim=4):
    shape = (2, length + start, 3)
    return random(2, length, 3, 8, seed=1), random(*shape, 8, seed=2), random(*shape, value_dim, seed=3)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("block", [4, 256])
def test_blocked_and_fused_equal_whole(start, padding, block, monkeypatch):
    monkeypatch.setattr(attention_ops, "QUERY_BLOCK", block)
    arrays = inputs(11, start)
    tensors = [paddle.to_tensor(x) for x in arrays]
    mask = padding_mask([padding, 0], 11, start)
    expected = reference(*arrays, causal(2, 11, start, padding), 0.3)
    blocked = blocked_causal_attention(*tensors, mask, 0.3).numpy()
    # The fused path has kernels of its own on a GPU; on the CPU the same call computes the same thing
    # plainly.
    fused = fused_causal_attention(*tensors, dense_mask(mask, 2, 11, 11 + start, "float32"), 0.3).numpy()
    for output in (blocked, fused):
        assert np.abs(output - expected).max() < CLOSE
        assert np.isfinite(output).all()


@pytest.mark.parametrize("block", [4, 256])
def test_packed_rows_equal_whole(block, monkeypatch):
    """Two rows of eleven: samples of 3, 6 and 2, and of 11; none sees another."""
    monkeypatch.setattr(attention_ops, "QUERY_BLOCK", block)
    monkeypatch.setattr(attention_mask, "QUERY_BLOCK", block)
    arrays = inputs(11, 0)
    tensors = [paddle.to_tensor(x) for x in arrays]
    mask = segment_mask([3, 6, 2, 11])
    samples = np.array([[0] * 3 + [1] * 6 + [2] * 2, [3] * 11])
    visible = causal(2, 11, 0) & (samples[:, :, None] == samples[:, None])
    expected = reference(*arrays, visible, 0.3)
    blocked = blocked_causal_attention(*tensors, mask, 0.3).numpy()
    fused = fused_causal_attention(*tensors, dense_mask(mask, 2, 11, 11, "float32"), 0.3).numpy()
    for output in (blocked, fused):
        assert np.abs(output - expected).max() < CLOSE


def additive(visible):
    return paddle.to_tensor(np.where(visible, 0, np.finfo(np.float32).min).astype(np.float32)[:, None])


MASKS = {
    "causal": lambda: CausalMask(),
    "causal behind others": lambda: CausalMask(5),
    "padded": lambda: padding_mask([6, 2], 11),
    "padded behind others": lambda: padding_mask([6, 0], 11, 5),
    "padded in the past only": lambda: padding_mask([3, 5], 11, 5),
    "segments": lambda: segment_mask([3, 8, 4, 7]),
    "segments of one sample": lambda: segment_mask([11, 11]),
    "a tensor for every row": lambda: tensor_mask(additive(causal(2, 11, 0, 4)), 11),
    "a tensor for all rows": lambda: tensor_mask(additive(causal(1, 11, 5)), 11, 5),
}


@pytest.mark.parametrize("value_dim", [4, 8])
@pytest.mark.parametrize("kind", MASKS)
def test_fused_equals_blocked_for_every_mask(kind, value_dim):
    mask = MASKS[kind]()
    tensors = [paddle.to_tensor(x) for x in inputs(11, mask.start, value_dim)]
    dense = dense_mask(mask, 2, 11, mask.start + 11, "float32")
    assert isinstance(dense, DenseMask) == (kind != "causal") and dense.start == mask.start
    blocked = blocked_causal_attention(*tensors, mask, 0.3)
    fused = fused_causal_attention(*tensors, dense, 0.3)
    assert fused.shape == blocked.shape == [2, 11, 3, value_dim]
    assert float((fused - blocked).abs().max()) < CLOSE
    assert float((blocked_causal_attention(*tensors, dense, 0.3) - blocked).abs().max()) < CLOSE


@pytest.mark.parametrize("kind", [kind for kind in MASKS if "segments" not in kind])
def test_weights_are_those_that_the_output_is_made_of(kind):
    mask = MASKS[kind]()
    queries, keys, values = (paddle.to_tensor(x) for x in inputs(11, mask.start))
    weights = attention_weights(queries, keys, mask, 0.3)
    assert weights.shape == [2, 3, 11, mask.start + 11]
    assert np.allclose(weights.sum(axis=-1).numpy(), 1, atol=CLOSE)
    output = paddle.einsum("bnts,bsnd->btnd", weights, values)
    assert float((output - blocked_causal_attention(queries, keys, values, mask, 0.3)).abs().max()) < CLOSE


def test_weights_of_packed_rows_are_refused():
    queries, keys, _ = (paddle.to_tensor(x) for x in inputs(11, 0))
    with pytest.raises(ValueError, match="packed rows are not given"):
        attention_weights(queries, keys, segment_mask([11, 11]), 0.3)


@pytest.mark.parametrize("fused", [False, True])
def test_full_attention_of_a_tile(fused):
    queries, keys, values = (random(2, 6, 3, 8, seed=seed) for seed in (4, 5, 6))
    scores = np.einsum("btnd,bsnd->bnts", queries, keys) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    output = full_attention(*(paddle.to_tensor(x) for x in (queries, keys, values)), fused).numpy()
    assert np.abs(output - np.einsum("bnts,bsnd->btnd", weights, values)).max() < CLOSE


def test_the_softmax_is_float32_under_amp(assert_leaves_amp):
    scores, bias = paddle.randn([2, 4]), paddle.to_tensor([0.0, 0.0, 0.0, MASK_VALUE])
    assert_leaves_amp(lambda: masked_softmax(scores, bias, 0.5))
