"""Blocked and fused attention against the whole score matrix in numpy."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models import dot_product
from paddlemix_vl2.models.dot_product import Visibility, full_attention


def reference(queries, keys, values, start, mask, scale):
    """Whole-matrix attention, [B, T, N, Dv]; rows that see nothing are even over all keys."""
    scores = np.einsum("btnd,bsnd->bnts", queries, keys).astype(np.float64) * scale
    rows, columns = np.arange(queries.shape[1])[:, None] + start, np.arange(keys.shape[1])[None]
    visible = (columns <= rows)[None, None] & mask[:, None, None, :]
    scores = np.where(visible | ~visible.any(axis=-1, keepdims=True), scores, -np.inf)
    scores = np.where(visible.any(axis=-1, keepdims=True), scores, 0.0)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("bnts,bsnd->btnd", weights / weights.sum(axis=-1, keepdims=True), values)


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("block", [4, 256])
def test_blocked_and_fused_equal_whole(start, padding, block, monkeypatch):
    monkeypatch.setattr(dot_product, "QUERY_BLOCK", block)
    rng = np.random.default_rng(1)
    queries = rng.standard_normal([2, 11, 3, 8]).astype(np.float32)
    keys = rng.standard_normal([2, 11 + start, 3, 8]).astype(np.float32)
    values = rng.standard_normal([2, 11 + start, 3, 4]).astype(np.float32)
    mask = np.ones([2, 11 + start], bool)
    mask[0, :padding] = False
    visibility = Visibility(
        start=start,
        key_mask=paddle.to_tensor(mask) if padding else None,
        padded_rows=max(padding - start, 0),
    )
    tensors = [paddle.to_tensor(x) for x in (queries, keys, values)]
    expected = reference(queries, keys, values, start, mask, 0.3)
    # The fused path has kernels of its own on a GPU; on the CPU the same call computes the same thing
    # plainly.
    for compute in (dot_product._blocked_attention, dot_product._fused_attention):
        output = compute(*tensors, visibility, scale=0.3).numpy()
        assert np.abs(output - expected).max() < 1e-5, compute.__name__
        assert np.isfinite(output).all()


def test_full_attention_of_a_tile():
    rng = np.random.default_rng(2)
    queries, keys, values = (rng.standard_normal([2, 6, 3, 8]).astype(np.float32) for _ in range(3))
    scores = np.einsum("btnd,bsnd->bnts", queries, keys) / np.sqrt(8)
    weights = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    output = full_attention(*(paddle.to_tensor(x) for x in (queries, keys, values))).numpy()
    assert np.abs(output - np.einsum("bnts,bsnd->btnd", weights, values)).max() < 1e-5
