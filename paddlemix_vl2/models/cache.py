"""Key and value caches: preallocated for the whole answer and written in place.

A cache knows its own length as a Python number, so that no step has to ask the device for it.
"""

import paddle

from paddlemix_vl2.configuration import DeepseekV2Config


class LatentCache:
    """What MLA keeps of a layer: the normed latent and the rotated shared key, side by side.

    Attributes:
        latents: [B, S, R + Dr], S being the capacity.
        absorbed: the two halves of ``kv_b_proj`` laid out for decode steps, set by the first one. They live
            here and not in the layer, so that they cannot outlast a change of the weights.
    """

    def __init__(self, batch: int, capacity: int, config: DeepseekV2Config, dtype: str):
        self.latents = paddle.zeros([batch, capacity, config.kv_lora_rank + config.qk_rope_head_dim], dtype)
        self.absorbed: tuple[paddle.Tensor, paddle.Tensor] | None = None

    def write(self, start: int, latents: paddle.Tensor) -> None:
        """Store [B, T, R + Dr] at positions ``start`` to ``start + T``."""
        self.latents[:, start : start + latents.shape[1]] = latents

    def read(self, length: int) -> paddle.Tensor:
        """The first ``length`` positions, [B, length, R + Dr]."""
        return self.latents[:, :length]


class KeyValueCache:
    """What multi-head attention keeps of a layer: ``keys`` and ``values``, both [B, N, S, D]."""

    def __init__(self, batch: int, capacity: int, config: DeepseekV2Config, dtype: str):
        heads = config.num_key_value_heads
        shape = [batch, heads, capacity, config.hidden_size // config.num_attention_heads]
        self.keys = paddle.zeros(shape, dtype)
        self.values = paddle.zeros(shape, dtype)

    def write(self, start: int, keys: paddle.Tensor, values: paddle.Tensor) -> None:
        """Store two [B, N, T, D] at positions ``start`` to ``start + T``."""
        stop = start + keys.shape[2]
        self.keys[:, :, start:stop] = keys
        self.values[:, :, start:stop] = values

    def read(self, length: int) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The first ``length`` positions of both, [B, N, length, D]."""
        return self.keys[:, :, :length], self.values[:, :, :length]


class ModelCache:
    """The caches of all layers and the state of the batch that fills them.

    Attributes:
        layers: one cache per decoder layer.
        length: positions filled so far, padding included.
        key_mask: bool [B, capacity], False on the padding of the prompts; None where there is none.
        padding: int64 [B, 1], padding positions in front of each prompt.
    """

    def __init__(self, config: DeepseekV2Config, attention_mask: paddle.Tensor, capacity: int, dtype: str):
        """``attention_mask`` is that of the whole prompt, [B, T].

        Raises:
            ValueError: a prompt does not end in a token: padding must be on the left.
        """
        batch, prompt_length = attention_mask.shape
        layer_cache = LatentCache if config.use_mla else KeyValueCache
        self.layers = [layer_cache(batch, capacity, config, dtype) for _ in range(config.num_hidden_layers)]
        self.capacity = capacity
        self.length = 0
        seen = attention_mask.astype("bool")
        self.padding = prompt_length - seen.astype("int64").sum(axis=1, keepdim=True)
        self.key_mask = None
        if not bool(seen[:, -1].all()):
            raise ValueError("attention_mask: a prompt ends in padding; padding must be on the left")
        if not bool(seen.all()):
            answer = paddle.ones([batch, capacity - prompt_length], "bool")
            self.key_mask = paddle.concat([seen, answer], axis=1)

    def next_positions(self, count: int) -> paddle.Tensor:
        """Position ids of the next ``count`` tokens, int64 [B, count]; padding does not count and stays at
        0."""
        return (paddle.arange(self.length, self.length + count) - self.padding).clip(min=0)
