"""Key and value caches: allocated once for the whole answer, with the prompt in front, and written in place.

A cache knows its own length as a Python number, so that no step has to ask the device for it. Rows can join
and leave between steps: keys are stored rotated by positions that do not count padding, so that moving a row
to the right behind more padding changes nothing of what its next queries see.
"""

import numpy as np
import paddle

from paddlemix_vl2 import device
from paddlemix_vl2.configuration import DeepseekV2Config

# A cache whose rows come and go grows by so many positions at a time: growing copies what is filled, and a
# step of Paddle's operators reads what is not filled too.
CAPACITY_STEP = 256


def roomy_capacity(length: int) -> int:
    """Positions for ``length`` filled ones and at least one more: the next multiple of ``CAPACITY_STEP``.

    >>> roomy_capacity(255), roomy_capacity(256)
    (256, 512)
    """
    return (length // CAPACITY_STEP + 1) * CAPACITY_STEP


class LatentCache:
    """What MLA keeps of a layer: the normed latent and the rotated shared key, side by side.

    Attributes:
        latents: [B, S, R + Dr], S being the capacity; None before the first write.
        absorbed: the two halves of ``kv_b_proj`` laid out for decode steps, set by the first one. They live
            here and not in the layer, so that they cannot outlast a change of the weights.
    """

    position_axis = 1

    def __init__(self, capacity: int, dtype: str | None = None):
        self.capacity, self.dtype = capacity, dtype
        self.latents: paddle.Tensor | None = None
        self.absorbed: tuple[paddle.Tensor, paddle.Tensor] | None = None

    def write(self, start: int, latents: paddle.Tensor) -> None:
        """Store [B, T, R + Dr] at positions ``start`` to ``start + T``."""
        self.latents = _store(self.latents, start, latents, 1, self.capacity, self.dtype)

    def read(self, length: int) -> paddle.Tensor:
        """The first ``length`` positions, [B, length, R + Dr]."""
        return self.latents[:, :length]

    @property
    def buffers(self) -> list[paddle.Tensor]:
        """All that is kept; every row is the first axis."""
        return [self.latents]

    @buffers.setter
    def buffers(self, new: list[paddle.Tensor]) -> None:
        (self.latents,) = new
        self.capacity = self.latents.shape[self.position_axis]


class KeyValueCache:
    """What multi-head attention keeps of a layer.

    Attributes:
        keys, values: both [B, N, S, D], S being the capacity; None before the first write.
    """

    position_axis = 2

    def __init__(self, capacity: int, dtype: str | None = None):
        self.capacity, self.dtype = capacity, dtype
        self.keys: paddle.Tensor | None = None
        self.values: paddle.Tensor | None = None

    def write(self, start: int, keys: paddle.Tensor, values: paddle.Tensor) -> None:
        """Store two [B, N, T, D] at positions ``start`` to ``start + T``."""
        self.keys = _store(self.keys, start, keys, 2, self.capacity, self.dtype)
        self.values = _store(self.values, start, values, 2, self.capacity, self.dtype)

    def read(self, length: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The first ``length`` positions of both, [B, N, length, D]."""
        return self.keys[:, :, :length], self.values[:, :, :length]

    @property
    def buffers(self) -> list[paddle.Tensor]:
        """All that is kept; every row is the first axis."""
        return [self.keys, self.values]

    @buffers.setter
    def buffers(self, new: list[paddle.Tensor]) -> None:
        self.keys, self.values = new
        self.capacity = self.keys.shape[self.position_axis]


def _store(buffer, start: int, new: paddle.Tensor, axis: int, capacity: int, dtype) -> paddle.Tensor:
    """The buffer with ``new`` at positions ``start`` and on of ``axis``, in ``dtype`` (None: as it is).

    The first write makes the buffer, by a dense copy; a prompt written into a slice would be copied element
    by element.
    """
    new = new.detach().astype(dtype or new.dtype)
    if start == 0:
        rest = list(new.shape)
        rest[axis] = capacity - rest[axis]
        return paddle.concat([new, paddle.zeros(rest, new.dtype)], axis=axis)
    index = (slice(None),) * axis + (slice(start, start + new.shape[axis]),)
    buffer[index] = new
    return buffer


def _moved(buffer: paddle.Tensor, axis: int, first: int, last: int, to: int, capacity: int) -> paddle.Tensor:
    """Positions ``first`` to ``last`` of a buffer, at ``to`` in one of ``capacity`` with zeros around."""
    if (first, to, capacity) == (0, 0, buffer.shape[axis]):
        return buffer

    def zeros(count: int) -> paddle.Tensor:
        return paddle.zeros([*buffer.shape[:axis], count, *buffer.shape[axis + 1 :]], buffer.dtype)

    filled = buffer[(slice(None),) * axis + (slice(first, last),)]
    return paddle.concat([zeros(to), filled, zeros(capacity - to - (last - first))], axis=axis)


class ModelCache:
    """The caches of all layers and the state of the batch that fills them.

    Attributes:
        layers: one cache per decoder layer.
        length: positions filled so far, padding included.
        key_mask: bool [B, capacity], False on the padding of the prompts; None where there is none.
        prompt_length: positions of the prompt, padding included; 0 once rows have joined or left, when there
            is no common prompt any more.
        padding: int64 [B, 1], padding positions in front of each prompt.
    """

    def __init__(
        self,
        config: DeepseekV2Config,
        attention_mask: paddle.Tensor,
        capacity: int,
        dtype: str | None = None,
    ):
        """``attention_mask`` is that of the whole prompt, [B, T]; ``dtype`` that of what is kept, by default
        that of what is written.

        Raises:
            ValueError: padding is anywhere but in front of a prompt, or the capacity is below the prompt.
        """
        self.prompt_length = attention_mask.shape[1]
        if capacity < self.prompt_length:
            raise ValueError(f"a cache of {capacity} positions cannot hold a prompt of {self.prompt_length}")
        layer_cache = LatentCache if config.use_mla else KeyValueCache
        self.layers = [layer_cache(capacity, dtype) for _ in range(config.num_hidden_layers)]
        self.capacity = capacity
        self.length = 0
        seen = attention_mask.astype("bool")
        self.padding = self.prompt_length - seen.astype("int64").sum(axis=1, keepdim=True)
        in_front = paddle.arange(self.prompt_length) < self.padding
        if not bool((in_front ^ seen).all()):
            raise ValueError(
                "attention_mask: padding must be on the left, zeros in front of the ones of a row"
            )
        self.key_mask = self._mask_padding()

    def _mask_padding(self) -> paddle.Tensor | None:
        if not bool((self.padding > 0).any()):
            return None
        return paddle.arange(self.capacity) >= self.padding

    @paddle.no_grad()
    def join(self, other: "ModelCache") -> None:
        """Take the rows of another filled cache behind the own ones; ``other`` is left as it is.

        The rows of the shorter cache move to the right, behind more padding. What they answer does not change
        by it, except with dynamic RoPE scaling beyond the trained length, which depends on the longest row of
        a batch. The capacity becomes :func:`roomy_capacity`. Where memory does not last, nothing has changed.
        """
        length = max(self.length, other.length)
        capacity = roomy_capacity(length)
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
        padding = paddle.concat([self.padding + shift, other.padding + others_shift])
        for own, buffers in zip(self.layers, joined, strict=True):
            own.buffers = buffers
        self._become(length, capacity, padding)

    @paddle.no_grad()
    def keep(self, rows: list[int]) -> None:
        """Keep these rows in this order, at least one, without the padding that all of them have.

        The capacity becomes :func:`roomy_capacity`; with all rows, this is how a full cache grows.
        """
        index = device.to_tensor(np.array(rows, np.int64))
        padding = paddle.gather(self.padding, index)
        common = int(padding.min())
        length = self.length - common
        capacity = roomy_capacity(length)
        for layer in self.layers:
            layer.buffers = [
                _moved(paddle.gather(kept, index), layer.position_axis, common, self.length, 0, capacity)
                for kept in layer.buffers
            ]
        self._become(length, capacity, padding - common)

    def _become(self, length: int, capacity: int, padding: paddle.Tensor) -> None:
        self.length, self.capacity, self.padding, self.prompt_length = length, capacity, padding, 0
        self.key_mask = self._mask_padding()

    def check_mask(self, attention_mask: paddle.Tensor | None) -> None:
        """Refuse a mask [B, T] that says something else about padding than the one the cache was made with.

        Raises:
            ValueError: the masks differ; behind a filled part no position is padding.
        """
        if attention_mask is None:
            return
        mask = attention_mask.astype("bool")
        known = paddle.ones_like(mask)
        if self.length == 0 and self.key_mask is not None:
            known = self.key_mask[:, : mask.shape[1]]
        if not bool((mask == known).all()):
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

    def next_positions(self, count: int) -> paddle.Tensor:
        """Position ids of the next ``count`` tokens, int64 [B, count]; padding does not count and stays at
        0."""
        return (paddle.arange(self.length, self.length + count) - self.padding).clip(min=0)
