"""Scaled dot-product attention: causal over a prompt, whole over a tile, and which keys a query may see.

On a GPU these are Paddle's fused kernels. On the CPU they are two matrix products and a softmax over blocks
of queries, laid out so that Paddle's CPU operators take their fast paths: transpositions through ``einsum``
(dense copies; a ``transpose`` is a view there, and copying a view element by element is over twenty times
slower), and biases without a batch axis where the batch has no padding.
"""

from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F

from paddlemix_vl2 import device
from paddlemix_vl2.models.precision import keeps_float32

# Finite, so that the row of a padded query, which sees nothing, becomes an average and not NaN.
HIDDEN_SCORE = -1e30
# Query rows whose scores exist at once on the CPU: bounds memory at N * 256 * S floats per sequence.
QUERY_BLOCK = 256


@dataclass(frozen=True)
class Visibility:
    """Which keys the queries of a call may see; the same for all layers.

    Attributes:
        start: position of the first query in the key sequence.
        key_mask: bool [B, S], False on padding; None where nothing is padded.
        padded_rows: leading queries of which at least one sequence has padding. Such a query sees no key; as
            in the published code its attention is then even over the whole sequence.
        step_bias: for a decode step over the whole cache, float32 [capacity] or (with padding)
            [B, 1, 1, capacity]: 0 where a key is filled and not padding, else ``HIDDEN_SCORE``.
        runs: where rows hold several samples, on the CPU: the lengths of the samples (and of padding), row
            after row. A query sees the earlier keys of its own sample.
        run_biases: of each run, what hides later keys, float32 [L, L]; the same for all layers. None where a
            run is longer than ``QUERY_BLOCK``.
        bias: the same on a GPU, float32 [B, 1, T, T]: 0 where a query sees the key, else ``HIDDEN_SCORE``.
    """

    start: int = 0
    key_mask: paddle.Tensor | None = None
    padded_rows: int = 0
    step_bias: paddle.Tensor | None = None
    runs: tuple[int, ...] = ()
    run_biases: tuple[paddle.Tensor | None, ...] = ()
    bias: paddle.Tensor | None = None


def causal_attention(
    queries: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor, visibility: Visibility, scale: float
) -> paddle.Tensor:
    """Causal softmax attention without the score matrix of the whole sequence.

    Args:
        queries: [B, T, N, D], at positions ``visibility.start`` and on of the keys' sequence.
        keys: [B, S, N, D], S = ``visibility.start`` + T.
        values: [B, S, N, Dv].
        scale: factor on the scores.

    Returns:
        [B, T, N, Dv] in the dtype of the queries; the softmax is float32.
    """
    if device.has_fused_attention():
        return _fused_attention(queries, keys, values, visibility, scale)
    return _blocked_attention(queries, keys, values, visibility, scale)


def full_attention(queries: paddle.Tensor, keys: paddle.Tensor, values: paddle.Tensor) -> paddle.Tensor:
    """Softmax attention of all positions with each other, scaled by D ** -0.5; all [B, T, N, D]."""
    if device.has_fused_attention():
        return F.scaled_dot_product_attention(queries, keys, values)
    queries, keys, values = (heads_first(x) for x in (queries * queries.shape[-1] ** -0.5, keys, values))
    weights = F.softmax(paddle.matmul(queries, keys, transpose_y=True), axis=-1)
    return heads_first(paddle.matmul(weights, values))


def _blocked_attention(queries, keys, values, visibility, scale) -> paddle.Tensor:
    """Block after block of queries, each against the keys up to its last position only.

    Padded sequences go one by one: their biases differ, and a bias that broadcasts over the heads of several
    sequences is slow on the CPU.
    """
    if visibility.runs:
        return _run_by_run(queries, keys, values, visibility, scale)
    queries, keys, values = (heads_first(x) for x in (queries, keys, values))
    mask = visibility.key_mask
    if mask is None:
        return heads_first(_causal_blocks(queries, keys, values, visibility, scale))
    rows = [
        _causal_blocks(queries[row], keys[row], values[row], visibility, scale, mask[row])
        for row in range(queries.shape[0])
    ]
    return heads_first(paddle.stack(rows))


def _run_by_run(queries, keys, values, visibility, scale) -> paddle.Tensor:
    """Every sample by itself: of a row of many samples, most scores would be hidden."""
    batch, length, heads, _ = queries.shape
    runs, biases = visibility.runs, visibility.run_biases
    parts = []
    for x in (queries, keys, values):
        in_line = heads_first(x.reshape([1, batch * length, heads, -1]))
        parts.append(paddle.split(in_line, runs, axis=2) if len(runs) > 1 else [in_line])
    outputs = [
        _causal_blocks(*run, Visibility(), scale, bias=bias)
        for run, bias in zip(zip(*parts, strict=True), biases, strict=True)
    ]
    output = paddle.concat(outputs, axis=2) if len(outputs) > 1 else outputs[0]
    return heads_first(output).reshape([batch, length, heads, -1])


def _causal_blocks(queries, keys, values, visibility, scale, key_mask=None, bias=None) -> paddle.Tensor:
    """[..., N, T, D] and [..., N, S, D or Dv] -> [..., N, T, Dv]; ``key_mask`` bool [S], ``bias`` what hides
    keys of the only block, where it has been built before."""
    blocks = []
    for first in range(0, queries.shape[-2], QUERY_BLOCK):
        block = _positions(queries, first, first + QUERY_BLOCK)
        position, rows = visibility.start + first, block.shape[-2]
        seen = keys.shape[-2] if first < visibility.padded_rows else position + rows
        scores = paddle.matmul(block, _positions(keys, 0, seen), transpose_y=True)
        hidden = causal_bias(position, rows, seen, key_mask) if bias is None else bias
        blocks.append(paddle.matmul(biased_softmax(scores, hidden, scale), _positions(values, 0, seen)))
    return paddle.concat(blocks, axis=-2) if len(blocks) > 1 else blocks[0]


def _positions(x: paddle.Tensor, first: int, end: int) -> paddle.Tensor:
    """``x[..., first:end, :]``; all of them are ``x`` itself, as the gradient of a slice is a copy."""
    return x if first == 0 and end >= x.shape[-2] else x[..., first:end, :]


def _fused_attention(queries, keys, values, visibility, scale) -> paddle.Tensor:
    """Paddle's fused attention. It scales by D ** -0.5 itself and wants values as wide as the keys."""
    queries = queries * (scale * queries.shape[-1] ** 0.5)
    value_dim, missing = values.shape[-1], keys.shape[-1] - values.shape[-1]
    if missing:
        values = paddle.concat([values, paddle.zeros([*values.shape[:-1], missing], values.dtype)], axis=-1)
    if visibility.start == 0 and visibility.key_mask is None and visibility.bias is None:
        output = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
    else:
        bias = visibility.bias
        if bias is None:
            bias = causal_bias(visibility.start, queries.shape[1], keys.shape[1], visibility.key_mask)
        bias = bias if bias.ndim == 4 else bias.unsqueeze([0, 1])
        # HIDDEN_SCORE is -inf in float16, and so are its lowest number and a score together; half of it is
        # not.
        bias = bias.clip(min=paddle.finfo(queries.dtype).min / 2).astype(queries.dtype)
        # Flash attention walks the mask sequence by sequence and does not broadcast it.
        bias = bias.expand([queries.shape[0], *bias.shape[1:]])
        output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
    return output[..., :value_dim]


def segment_visibility(segments: paddle.Tensor) -> Visibility:
    """Rows of several samples each: ``segments`` [B, T], 0 on padding, 1, 2, ... for the samples, each in one
    piece."""
    if device.has_fused_attention():
        length = segments.shape[1]
        return Visibility(bias=causal_bias(0, length, length, None, segments))
    runs = []
    for row in segments.numpy():
        starts = np.flatnonzero(np.diff(row, prepend=row[0] - 1))
        runs.extend(np.diff(starts, append=len(row)).tolist())
    largest = min(max(runs), QUERY_BLOCK)
    triangle = np.triu(np.full([largest, largest], HIDDEN_SCORE, np.float32), k=1)
    biases = (paddle.to_tensor(triangle[:run, :run]) if run <= largest else None for run in runs)
    return Visibility(runs=tuple(runs), run_biases=tuple(biases))


def causal_bias(
    position: int,
    rows: int,
    seen: int,
    key_mask: paddle.Tensor | None,
    segments: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """0 where query ``position + row`` may see the key, else ``HIDDEN_SCORE``.

    Args:
        key_mask: bool [S] of one sequence, bool [B, S] of several, or None without padding.
        segments: [B, S], the sample of each position; other samples' keys are hidden.

    Returns:
        float32 [rows, seen], or [B, 1, rows, seen] for several sequences.
    """
    queries = paddle.arange(position, position + rows).unsqueeze(1)
    visible = paddle.arange(seen).unsqueeze(0) <= queries
    if key_mask is not None:
        seen_keys = key_mask[..., :seen]
        visible = visible & (seen_keys if key_mask.ndim == 1 else seen_keys.unsqueeze([1, 2]))
    if segments is not None:
        asking, asked = segments[..., position : position + rows].unsqueeze(-1), segments[..., :seen]
        visible = visible & (asking == asked.unsqueeze(-2)).unsqueeze(1)
    return (~visible).astype("float32") * HIDDEN_SCORE


@keeps_float32
def biased_softmax(scores: paddle.Tensor, bias: paddle.Tensor, scale: float) -> paddle.Tensor:
    """float32 softmax of scaled and biased scores, back in their dtype."""
    return F.softmax(scores.astype("float32") * scale + bias, axis=-1).astype(scores.dtype)


def heads_first(x: paddle.Tensor) -> paddle.Tensor:
    """[B, T, N, D] <-> [B, N, T, D]."""
    batch, first, second, dim = x.shape
    if first == 1 or second == 1:
        return x.reshape([batch, second, first, dim])
    return paddle.einsum("btnd->bntd", x)
