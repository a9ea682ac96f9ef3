"""Attention masks: which keys the queries of a forward pass may see. All layers of a pass share one.

==============  =======================================================================================
CausalMask      the keys up to the query's own position
PaddedMask      the same, without the padding in front of a row
SegmentMask     rows of several samples: the earlier keys of the query's own sample
DenseMask       a tensor, query by query
DecodeMask      one query per row, over a whole cache
==============  =======================================================================================
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import paddle

from paddlemix_vl2 import device
from paddlemix_vl2.kernels.ops import QUERY_BLOCK
from paddlemix_vl2.models.layers.kv_cache import ModelCache

# Finite, so that the row of a padded query, which sees nothing, becomes an average and not NaN.
MASK_VALUE = -1e30


@dataclass(frozen=True)
class CausalMask:
    """Attributes:
    start: position of the first query among the keys.
    """

    start: int = 0


@dataclass(frozen=True)
class PaddedMask:
    """Attributes:
    key_mask: bool [B, S], False on padding.
    padded_queries: leading queries of which at least one row has padding. Such a query sees no key; as in the
        published code its attention is then even over the whole sequence.
    """

    key_mask: paddle.Tensor
    start: int = 0
    padded_queries: int = 0


@dataclass(frozen=True)
class SegmentMask:
    """Attributes:
    seqlens: lengths of the samples, and of padding, row after row.
    biases: of each of them, what masks later keys, float32 [L, L]; None where it is longer than a block of
        queries.
    """

    seqlens: tuple[int, ...]
    biases: tuple[paddle.Tensor | None, ...] = ()
    start: int = 0


@dataclass(frozen=True)
class DenseMask:
    """Attributes:
    bias: [1 or B, 1, T, S], 0 where a query sees the key, else ``MASK_VALUE`` or as low as the dtype allows.
    """

    bias: paddle.Tensor
    start: int = 0


@dataclass(frozen=True)
class DecodeMask:
    """Attributes:
    start: position of the query, which is that of the last key that it sees.
    key_mask: bool [B, S] over the cache's capacity S, False on padding; None where nothing is padded.
    bias: float32 [S], or [B, 1, 1, S] with padding: 0 where a key is filled and no padding, else
        ``MASK_VALUE``.
    """

    start: int
    key_mask: paddle.Tensor | None
    bias: paddle.Tensor


# Of several queries, and of any number.
PromptMask = CausalMask | PaddedMask | SegmentMask | DenseMask
AttentionMask = CausalMask | PaddedMask | SegmentMask | DenseMask | DecodeMask


def padding_mask(padding: Sequence[int] | np.ndarray, length: int, start: int = 0) -> PromptMask:
    """The mask of ``length`` queries behind ``start`` others, with ``padding`` in front of each row."""
    if not any(padding):
        return CausalMask(start)
    in_front = np.asarray(padding, np.int64)[:, None]
    key_mask = device.to_tensor(np.arange(start + length) >= in_front)
    return PaddedMask(key_mask, start, max(0, int(in_front.max()) - start))


def segment_mask(seqlens: Sequence[int]) -> SegmentMask:
    """The mask of packed rows."""
    largest = min(max(seqlens), QUERY_BLOCK)
    triangle = np.triu(np.full([largest, largest], MASK_VALUE, np.float32), k=1)
    lengths = sorted({n for n in seqlens if n <= largest})
    biases = dict(zip(lengths, device.to_tensors(*(triangle[:n, :n].copy() for n in lengths)), strict=True))
    return SegmentMask(tuple(seqlens), tuple(biases.get(n) for n in seqlens))


def cache_mask(cache: ModelCache, length: int) -> AttentionMask:
    """The mask of ``length`` new positions behind a filled cache."""
    if length > 1 or cache.length == 0:
        return (
            PaddedMask(cache.key_mask, cache.length)
            if cache.key_mask is not None
            else CausalMask(cache.length)
        )
    visible = paddle.arange(cache.capacity) <= cache.length
    if cache.key_mask is not None:
        visible = (visible & cache.key_mask).unsqueeze([1, 2])
    return DecodeMask(cache.length, cache.key_mask, (~visible).astype("float32") * MASK_VALUE)


def tensor_mask(attention_mask: paddle.Tensor, length: int, start: int = 0) -> PromptMask:
    """The mask of a tensor, which is read from the device.

    Args:
        attention_mask: [B, S] of ones and zeros (padding in front), or, as the published code makes it,
            [B, 1, T, S] added to the scores; S = ``start`` + T.
        length: T.
        start: position of the first query.

    Raises:
        ValueError: another shape, or padding that is not in front of a row.
    """
    if attention_mask.ndim == 4:
        return DenseMask(attention_mask.astype("float32").clip(min=MASK_VALUE), start)
    if attention_mask.ndim != 2 or attention_mask.shape[1] != start + length:
        raise ValueError(
            f"attention_mask has the shape {attention_mask.shape}; it must be [B, {start + length}], or "
            "[B, 1, T, S]"
        )
    return padding_mask(left_padding(attention_mask.astype("bool").numpy()), length, start)


def left_padding(mask: np.ndarray) -> np.ndarray:
    """Positions of padding in front of each row: bool [B, T] -> int64 [B].

    Raises:
        ValueError: there is padding elsewhere.
    """
    padding = mask.shape[1] - mask.sum(axis=1, dtype=np.int64)
    if ((np.arange(mask.shape[1]) >= padding[:, None]) != mask).any():
        raise ValueError("attention_mask: padding must be on the left, zeros in front of the ones of a row")
    return padding
