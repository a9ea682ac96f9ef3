"""Key and value caches: allocated once for the whole answer, with the prompt in front, and written in place.

A cache knows its own length as a Python number, so that no step has to ask the device for it.
"""

import paddle

from paddlemix_vl2.configuration import DeepseekV2Config


class LatentCache:
    """What MLA keeps of a layer: the normed latent and the rotated shared key, side by side.

    Attributes:
        latents: [B, S, R + Dr], S being the capacity; None before the first write.
        absorbed: the two halves of ``kv_b_proj`` laid out for decode steps, set by the first one. They live
            here and not in the layer, so that they cannot outlast a change of the weights.
    """

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


class KeyValueCache:
    """What multi-head attention keeps of a layer.

    Attributes:
        keys, values: both [B, N, S, D], S being the capacity; None before the first write.
    """

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


class ModelCache:
    """The caches of all layers and the state of the batch that fills them.

    Attributes:
        layers: one cache per decoder layer.
        length: positions filled so far, padding included.
        key_mask: bool [B, capacity], False on the padding of the prompts; None where there is none.
        prompt_length: positions of the prompt, padding included.
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
        batch, self.prompt_length = attention_mask.shape
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
        self.key_mask = None
        if not bool(seen.all()):
            answer = paddle.ones([batch, capacity - self.prompt_length], "bool")
            self.key_mask = paddle.concat([seen, answer], axis=1)

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
