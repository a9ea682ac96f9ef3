"""Scaled dot-product attention: causal over a prompt, full over a tile.

On a GPU these are Paddle's fused kernels. On the CPU they are two matrix products and a softmax over blocks
of queries, laid out so that Paddle's CPU operators take their fast paths: transpositions through ``einsum``
(dense copies; a ``transpose`` is a view there, and copying a view element by element is over twenty times
slower), and biases without a batch axis where the batch has no padding.
"""

from typing import cast

import numpy as np
import paddle
import paddle.nn.functional as F

from paddlemix_vl2 import device
from paddlemix_vl2.models.layers.attention_mask import (
    MASK_VALUE,
    QUERY_BLOCK,
    AttentionMask,
    CausalMask,
    DecodeMask,
    DenseMask,
    PaddedMask,
    PromptMask,
    SegmentMask,
)


def blocked_causal_attention(
    queries: paddle.Tensor,
    keys: paddle.Tensor,
    values: paddle.Tensor,
    attention_mask: PromptMask,
    scale: float,
) -> paddle.Tensor:
    """Causal softmax attention without the score matrix of the whole sequence: block after block of queries,
    each against the keys up to its last position only.

    Args:
        queries: [B, T, N, D], at positions ``attention_mask.start`` and on of the keys' sequence.
        keys: [B, S, N, D], S = ``attention_mask.start`` + T.
        values: [B, S, N, Dv].
        scale: factor on the scores.

    Returns:
        [B, T, N, Dv] in the dtype of the queries; the softmax is float32.
    """
    if isinstance(attention_mask, SegmentMask):
        return _segment_attention(queries, keys, values, attention_mask, scale)
    queries, keys, values = (transpose_heads(x) for x in (queries, keys, values))
    if isinstance(attention_mask, DenseMask):
        scores = paddle.matmul(queries, keys, transpose_y=True)
        return transpose_heads(paddle.matmul(masked_softmax(scores, attention_mask.bias, scale), values))
    if not isinstance(attention_mask, PaddedMask):
        return transpose_heads(_causal_blocks(queries, keys, values, attention_mask, scale))
    # Padded rows go one by one: their biases differ, and a bias that broadcasts over the heads of several
    # sequences is slow on the CPU.
    rows = [
        _causal_blocks(
            queries[row], keys[row], values[row], attention_mask, scale, attention_mask.key_mask[row]
        )
        for row in range(queries.shape[0])
    ]
    return transpose_heads(paddle.stack(rows))


def fused_causal_attention(
    queries: paddle.Tensor,
    keys: paddle.Tensor,
    values: paddle.Tensor,
    attention_mask: PromptMask,
    scale: float,
) -> paddle.Tensor:
    """The same by Paddle's fused attention, which scales by D ** -0.5 itself and wants values as wide as the
    keys; masks come from :func:`dense_mask`."""
    queries = queries * (scale * queries.shape[-1] ** 0.5)
    value_dim, missing = values.shape[-1], keys.shape[-1] - values.shape[-1]
    if missing:
        values = paddle.concat([values, paddle.zeros([*values.shape[:-1], missing], values.dtype)], axis=-1)
    if isinstance(attention_mask, DenseMask):
        output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=attention_mask.bias)
    else:
        output = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    return output[..., :value_dim]


def full_attention(
    queries: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor, fused: bool = False
) -> paddle.Tensor:
    """Softmax attention of all positions with each other, scaled by D ** -0.5; all [B, T, N, D]."""
    if fused:
        return F.scaled_dot_product_attention(queries, keys, values)
    queries, keys, values = (transpose_heads(x) for x in (queries * queries.shape[-1] ** -0.5, keys, values))
    weights = F.softmax(paddle.matmul(queries, keys, transpose_y=True), axis=-1)
    return transpose_heads(paddle.matmul(weights, values))


def attention_weights(queries, keys, attention_mask: AttentionMask, scale: float) -> paddle.Tensor:
    """The whole matrix that the functions above never build, [B, N, T, S]: for those who want to look at it.

    Raises:
        ValueError: packed rows.
    """
    if isinstance(attention_mask, SegmentMask):
        raise ValueError("output_attentions: attention weights of packed rows are not given")
    bias = getattr(attention_mask, "bias", None)
    if bias is None:
        key_mask = getattr(attention_mask, "key_mask", None)
        bias = causal_bias(attention_mask.start, queries.shape[1], keys.shape[1], key_mask)
    queries, keys = transpose_heads(queries), transpose_heads(keys)
    return masked_softmax(paddle.matmul(queries, keys, transpose_y=True), bias[..., : keys.shape[2]], scale)


def _segment_attention(queries, keys, values, mask: SegmentMask, scale) -> paddle.Tensor:
    """Every sample by itself: of a row of many samples, most scores would be masked."""
    batch, length, heads, _ = queries.shape
    parts = []
    for x in (queries, keys, values):
        in_line = transpose_heads(x.reshape([1, batch * length, heads, -1]))
        parts.append(paddle.split(in_line, mask.seqlens, axis=2) if len(mask.seqlens) > 1 else [in_line])
    outputs = [
        _causal_blocks(query, key, value, CausalMask(), scale, bias=bias)
        for query, key, value, bias in zip(*parts, mask.biases, strict=True)
    ]
    output = paddle.concat(outputs, axis=2) if len(outputs) > 1 else outputs[0]
    return transpose_heads(output).reshape([batch, length, heads, -1])


def _causal_blocks(
    queries, keys, values, mask: CausalMask | PaddedMask, scale, key_mask=None, bias=None
) -> paddle.Tensor:
    """[..., N, T, D] and [..., N, S, D or Dv] -> [..., N, T, Dv]; ``key_mask`` bool [S] of padded rows,
    ``bias`` of the only block, where it has been built before."""
    blocks = []
    padded_queries = mask.padded_queries if isinstance(mask, PaddedMask) else 0
    for first in range(0, queries.shape[-2], QUERY_BLOCK):
        block = _positions(queries, first, first + QUERY_BLOCK)
        position, length = mask.start + first, block.shape[-2]
        seen = keys.shape[-2] if first < padded_queries else position + length
        scores = paddle.matmul(block, _positions(keys, 0, seen), transpose_y=True)
        masked = causal_bias(position, length, seen, key_mask) if bias is None else bias
        blocks.append(paddle.matmul(masked_softmax(scores, masked, scale), _positions(values, 0, seen)))
    return paddle.concat(blocks, axis=-2) if len(blocks) > 1 else blocks[0]


def _positions(x: paddle.Tensor, first: int, end: int) -> paddle.Tensor:
    """``x[..., first:end, :]``; all of them are ``x`` itself, as the gradient of a slice is a copy."""
    return x if first == 0 and end >= x.shape[-2] else x[..., first:end, :]


def masked_softmax(scores: paddle.Tensor, bias: paddle.Tensor, scale: float) -> paddle.Tensor:
    """float32 softmax of scores, scaled and with the mask's bias added, back in their dtype."""
    if paddle.amp.is_autocast_enabled():  # which would compute in 16 bits
        with paddle.amp.auto_cast(enable=False):
            return masked_softmax(scores, bias, scale)
    return F.softmax(scores.astype("float32") * scale + bias, axis=-1).astype(scores.dtype)


def transpose_heads(x: paddle.Tensor) -> paddle.Tensor:
    """[B, T, N, D] <-> [B, N, T, D]."""
    batch, first, second, dim = x.shape
    if first == 1 or second == 1:
        return x.reshape([batch, second, first, dim])
    return dense_transpose("btnd->bntd", x)


def dense_transpose(equation: str, x: paddle.Tensor) -> paddle.Tensor:
    """``x`` with its axes in another order, also in memory."""
    return cast(paddle.Tensor, paddle.einsum(equation, x))  # Paddle's annotation also allows None


def dense_mask(mask: AttentionMask, batch: int, length: int, seen: int, dtype) -> AttentionMask:
    """The same mask for fused attention, which takes none or a dense one, in ``dtype`` and with a row for
    every sequence: flash attention walks the mask sequence by sequence and does not broadcast it."""
    if isinstance(mask, DecodeMask) or (isinstance(mask, CausalMask) and mask.start == 0):
        return mask
    if isinstance(mask, SegmentMask):
        bias = causal_bias(0, length, length, None, _segment_ids(mask.seqlens, batch))
    elif isinstance(mask, DenseMask):
        bias = mask.bias
    else:
        bias = causal_bias(mask.start, length, seen, getattr(mask, "key_mask", None))
    bias = bias if bias.ndim == 4 else bias.unsqueeze([0, 1])
    # MASK_VALUE is -inf in float16, and so are its lowest number and a score together; half of it is not.
    bias = bias.clip(min=paddle.finfo(dtype).min / 2).astype(dtype)
    return DenseMask(bias.expand([batch, *bias.shape[1:]]), mask.start)


def _segment_ids(seqlens: tuple[int, ...], batch: int) -> paddle.Tensor:
    """Which sample each position is of, int64 [B, T]; padding counts as one."""
    return device.to_tensor(np.repeat(np.arange(len(seqlens)), seqlens).reshape(batch, -1))


def causal_bias(
    position: int,
    length: int,
    seen: int,
    key_mask: paddle.Tensor | None,
    segments: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """0 where query ``position + i`` may see the key, else ``MASK_VALUE``.

    Args:
        length, seen: queries and keys.
        key_mask: bool [S] of one row, bool [B, S] of several, or None without padding.
        segments: [B, S], the sample of each position; other samples' keys are masked.

    Returns:
        float32 [length, seen], or [B, 1, length, seen] for several rows.
    """
    queries = paddle.arange(position, position + length).unsqueeze(1)
    visible = paddle.arange(seen).unsqueeze(0) <= queries
    if key_mask is not None:
        seen_keys = key_mask[..., :seen]
        visible = visible & (seen_keys if key_mask.ndim == 1 else seen_keys.unsqueeze([1, 2]))
    if segments is not None:
        asking, asked = segments[..., position : position + length].unsqueeze(-1), segments[..., :seen]
        visible = visible & (asking == asked.unsqueeze(-2)).unsqueeze(1)
    return (~visible).astype("float32") * MASK_VALUE
