"""Key and value caches: allocated once for the whole answer, with the prompt in front, and written in place.

A cache knows its own length as a Python number, so that no step has to ask the device for it. Rows can join
and leave between steps: keys are stored rotated by positions that do not count padding, so that moving a row
to the right behind more padding changes nothing of what its next queries see.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import paddle

from paddlemix_vl2 import device
from paddlemix_vl2.config.language import DeepseekV2Config

# A cache whose rows come and go grows by so many positions at a time: growing copies what is filled, and a
# step of Paddle's operators reads what is not filled too.
CAPACITY_STEP = 256

Halves = tuple[paddle.Tensor, paddle.Tensor]
CacheDtype = Literal["float32", "bfloat16", "float16"]


def round_up_capacity(length: int) -> int:
    """Positions for ``length`` filled ones and at least one more: the next multiple of ``CAPACITY_STEP``.

    >>> round_up_capacity(255), round_up_capacity(256)
    (256, 512)
    """
    return (length // CAPACITY_STEP + 1) * CAPACITY_STEP


class LatentCache:
    """What MLA keeps of a layer: the normed latent and the rotated shared key, side by side.

    Attributes:
        latents: [B, S, R + Dr], S being the capacity; there from the first write on.
        length: where the last write ended.
    """

    position_axis = 1
    latents: paddle.Tensor

    def __init__(self, capacity: int, dtype: CacheDtype | None = None):
        self.capacity, self.dtype = capacity, dtype
        self.length = 0
        self._absorbed: tuple[paddle.Tensor, paddle.Tensor] | None = None

    def write(self, start: int, latents: paddle.Tensor) -> None:
        """Store [B, T, R + Dr] at positions ``start`` to ``start + T``."""
        self.length = start + latents.shape[1]
        self.capacity = max(self.capacity, self.length)
        filled = self.latents if start else None
        self.latents = _store(filled, start, latents, 1, self.capacity, self.dtype)

    def append(self, start: int, latents: paddle.Tensor) -> paddle.Tensor:
        """:meth:`write`, and all positions so far, [B, start + T, R + Dr]. Those of a first call are given
        back as they are, whatever the cache's dtype."""
        self.write(start, latents)
        if start == 0:
            return latents
        return self.latents[:, : start + latents.shape[1]].astype(latents.dtype)

    def absorbed(self, make: Callable[[], Halves]) -> Halves:
        """The two halves of ``kv_b_proj`` laid out for decode steps, made by the first one. They live here
        and not in the layer, so that they cannot outlast a change of the weights."""
        if self._absorbed is None:
            self._absorbed = make()
        return self._absorbed

    @property
    def buffers(self) -> list[paddle.Tensor]:
        """All that is kept; every row is the first axis."""
        return [self.latents]

    def replace(self, buffers: list[paddle.Tensor]) -> None:
        """Keep these instead; the capacity is theirs."""
        (self.latents,) = buffers
        self.capacity = self.latents.shape[self.position_axis]


class KeyValueCache:
    """What multi-head attention keeps of a layer.

    Attributes:
        keys, values: both [B, N, S, D], S being the capacity; there from the first write on.
        length: where the last write ended.
    """

    position_axis = 2
    keys: paddle.Tensor
    values: paddle.Tensor

    def __init__(self, capacity: int, dtype: CacheDtype | None = None):
        self.capacity, self.dtype = capacity, dtype
        self.length = 0

    def write(self, start: int, keys: paddle.Tensor, values: paddle.Tensor) -> None:
        """Store two [B, N, T, D] at positions ``start`` to ``start + T``."""
        self.length = start + keys.shape[2]
        self.capacity = max(self.capacity, self.length)
        filled = (self.keys, self.values) if start else (None, None)
        self.keys, self.values = (
            _store(kept, start, new, 2, self.capacity, self.dtype)
            for kept, new in zip(filled, (keys, values), strict=True)
        )

    def append(
        self, start: int, keys: paddle.Tensor, values: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """:meth:`write`, and all positions so far, [B, N, start + T, D]. Those of a first call are given back
        as they are, whatever the cache's dtype."""
        self.write(start, keys, values)
        if start == 0:
            return keys, values
        end = start + keys.shape[2]
        return self.keys[:, :, :end].astype(keys.dtype), self.values[:, :, :end].astype(values.dtype)

    @property
    def buffers(self) -> list[paddle.Tensor]:
        """All that is kept; every row is the first axis."""
        return [self.keys, self.values]

    def replace(self, buffers: list[paddle.Tensor]) -> None:
        """Keep these instead; the capacity is theirs."""
        self.keys, self.values = buffers
        self.capacity = self.keys.shape[self.position_axis]


def _store(
    buffer: paddle.Tensor | None,
    start: int,
    new: paddle.Tensor,
    axis: int,
    capacity: int,
    dtype: CacheDtype | None,
) -> paddle.Tensor:
    """The buffer with ``new`` at positions ``start`` and on of ``axis``, in ``dtype`` (None: as it is).

    The first write, without a buffer, makes it by a dense copy: a prompt written into a slice would be copied
    element by element. A buffer that is too small is copied into a larger one.
    """
    new = new.detach().astype(dtype or new.dtype)
    if buffer is None:
        return paddle.concat([new, _zeros(new, axis, capacity - new.shape[axis])], axis=axis)
    if buffer.shape[axis] < capacity:
        buffer = paddle.concat([buffer, _zeros(buffer, axis, capacity - buffer.shape[axis])], axis=axis)
    index = (slice(None),) * axis + (slice(start, start + new.shape[axis]),)
    buffer[index] = new
    return buffer


def _zeros(like: paddle.Tensor, axis: int, count: int) -> paddle.Tensor:
    """As many positions as said, else of the shape of ``like``."""
    return paddle.zeros([*like.shape[:axis], count, *like.shape[axis + 1 :]], like.dtype)


def _moved(buffer: paddle.Tensor, axis: int, first: int, last: int, to: int, capacity: int) -> paddle.Tensor:
    """Positions ``first`` to ``last`` of a buffer, at ``to`` in one of ``capacity`` with zeros around."""
    if (first, to, capacity) == (0, 0, buffer.shape[axis]):
        return buffer
    filled = buffer[(slice(None),) * axis + (slice(first, last),)]
    behind = capacity - to - (last - first)
    return paddle.concat([_zeros(buffer, axis, to), filled, _zeros(buffer, axis, behind)], axis=axis)


LayerCache = LatentCache | KeyValueCache


class ModelCache:
    """The caches of all layers and the state of the batch that fills them.

    Attributes:
        layers: one cache per decoder layer.
        length: positions filled so far, padding included.
        key_mask: bool [B, capacity], False on the padding of the prompts; None where there is none.
        prompt_length: positions of the prompt, padding included; 0 once rows have joined or left, when there
            is no common prompt any more.
        padding: int64 [B], padding positions in front of each prompt; the host's, so that no step has to ask
            the device.
    """

    def __init__(
        self,
        config: DeepseekV2Config,
        padding: Sequence[int],
        prompt_length: int,
        capacity: int,
        dtype: CacheDtype | None = None,
    ):
        """``padding`` is in front of prompts that are ``prompt_length`` long with it; ``dtype`` is that of
        what is kept, by default that of what is written.

        Raises:
            ValueError: the capacity is below the prompt.
        """
        if capacity < prompt_length:
            raise ValueError(f"a cache of {capacity} positions cannot hold a prompt of {prompt_length}")
        layer_cache = LatentCache if config.use_mla else KeyValueCache
        self.layers: list[LayerCache] = [
            layer_cache(capacity, dtype) for _ in range(config.num_hidden_layers)
        ]
        self._set(0, capacity, np.array(padding, np.int64), prompt_length)

    @property
    def is_padded(self) -> bool:
        """Whether any row has padding."""
        return self.key_mask is not None

    @paddle.no_grad()
    def append_rows(self, other: "ModelCache") -> None:
        """Append the rows of another filled cache; ``other`` is not changed.

        The rows of the shorter cache move to the right, behind more padding. Their answers do not change,
        except with dynamic RoPE scaling beyond the trained length, which depends on the longest row of a
        batch. The capacity becomes :func:`round_up_capacity`. Where memory runs out, nothing has changed.
        """
        length = max(self.length, other.length)
        capacity = round_up_capacity(length)
        shift, others_shift = length - self.length, length - other.length
        joined = []
        for own, new in zip(self.layers, other.layers, strict=True):
            axis = own.position_axis
            joined.append(
                [
                    paddle.concat(
                        [
                            _moved(mine, axis, 0, self.length, shift, capacity),
                            _moved(theirs, axis, 0, other.length, others_shift, capacity),
                        ]
                    )
                    for mine, theirs in zip(own.buffers, new.buffers, strict=True)
                ]
            )
        padding = np.concatenate([self.padding + shift, other.padding + others_shift])
        for own, buffers in zip(self.layers, joined, strict=True):
            own.replace(buffers)
        self._set(length, capacity, padding)

    @paddle.no_grad()
    def select_rows(self, rows: list[int]) -> None:
        """Keep these rows in this order, at least one, and remove the padding that all of them have.

        The capacity becomes :func:`round_up_capacity`; with all rows, this is how a full cache grows.
        """
        index = device.to_tensor(np.array(rows, np.int64))
        padding = self.padding[rows]
        common = int(padding.min())
        length = self.length - common
        capacity = round_up_capacity(length)
        for layer in self.layers:
            axis = layer.position_axis
            kept = [paddle.gather(buffer, index) for buffer in layer.buffers]
            layer.replace([_moved(buffer, axis, common, self.length, 0, capacity) for buffer in kept])
        self._set(length, capacity, padding - common)

    def _set(self, length: int, capacity: int, padding: np.ndarray, prompt_length: int = 0) -> None:
        self.length, self.capacity = length, capacity
        self.padding, self.prompt_length = padding, prompt_length
        self._padding = device.to_tensor(padding[:, None])
        self.key_mask: paddle.Tensor | None = None
        if padding.any():
            self.key_mask = paddle.arange(capacity) >= self._padding

    def check_mask(self, attention_mask: paddle.Tensor | None) -> None:
        """Refuse a mask [B, T] that says something else about padding than the one the cache was made with.

        Raises:
            ValueError: the masks differ; behind a filled part no position is padding.
        """
        if attention_mask is None:
            return
        mask = attention_mask.astype("bool").numpy()
        in_front = self.padding[:, None] if self.length == 0 else 0
        if (mask != (np.arange(mask.shape[1]) >= in_front)).any():
            raise ValueError("attention_mask differs from the mask that the cache was made with")

    def require_room(self, count: int) -> None:
        """Refuse ``count`` positions that do not fit any more.

        Raises:
            ValueError: with the numbers.
        """
        if self.length + count > self.capacity:
            raise ValueError(
                f"the cache has {self.capacity} positions, {self.length} of them filled; {count} more do not "
                "fit: make it with a larger capacity"
            )

    def advance(self, count: int) -> None:
        """Count positions that every layer has written."""
        self.length += count

    def next_positions(self, count: int) -> paddle.Tensor:
        """Position ids of the next ``count`` tokens, int64 [B, count]; padding does not count and stays at
        0."""
        return (paddle.arange(self.length, self.length + count) - self._padding).clip(min=0)
