"""Self-attention of the language model: multi-head latent attention (MLA), and multi-head attention for
VL2-Tiny.

Source: published ``DeepseekV2Attention`` and, where ``use_mla`` is false, the Llama attention that it falls
back to; MLA is section 2.1 of DeepSeek-V2 (arXiv 2405.04434), its absorbed form appendix C there.
"""

from dataclasses import dataclass

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlemix_vl2 import device
from paddlemix_vl2.configuration import DeepseekV2Config
from paddlemix_vl2.models.cache import KeyValueCache, LatentCache
from paddlemix_vl2.models.layers import DeepseekV2RMSNorm
from paddlemix_vl2.models.rope import RotaryEmbedding, rotate

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
        step_bias: for a decode step over the whole cache, float32 [B or 1, 1, 1, capacity]: 0 where a key is
            filled and not padding, else ``HIDDEN_SCORE``.
    """

    start: int = 0
    key_mask: paddle.Tensor | None = None
    padded_rows: int = 0
    step_bias: paddle.Tensor | None = None


class DeepseekV2Attention(nn.Layer):
    """Multi-head latent attention, with and without a low-rank query (``q_lora_rank``).

    Prefill and training expand the latent to keys and values of every head; a decode step moves
    ``kv_b_proj`` into query and output instead and reads the latent cache, which is equal and touches fewer
    bytes.
    """

    def __init__(self, config: DeepseekV2Config, rotary: RotaryEmbedding):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.nope_dim, self.rope_dim, self.v_dim = (
            config.qk_nope_head_dim,
            config.qk_rope_head_dim,
            config.v_head_dim,
        )
        self.rank = config.kv_lora_rank
        self.scale = (self.nope_dim + self.rope_dim) ** -0.5 * rotary.softmax_factor()
        hidden, bias = config.hidden_size, None if config.attention_bias else False
        query_width = self.num_heads * (self.nope_dim + self.rope_dim)
        self.q_lora_rank = config.q_lora_rank
        if self.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, query_width, bias_attr=False)
        else:
            self.q_a_proj = nn.Linear(hidden, self.q_lora_rank, bias_attr=bias)
            self.q_a_layernorm = DeepseekV2RMSNorm(self.q_lora_rank)
            self.q_b_proj = nn.Linear(self.q_lora_rank, query_width, bias_attr=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, self.rank + self.rope_dim, bias_attr=bias)
        self.kv_a_layernorm = DeepseekV2RMSNorm(self.rank)
        self.kv_b_proj = nn.Linear(self.rank, self.num_heads * (self.nope_dim + self.v_dim), bias_attr=False)
        self.o_proj = nn.Linear(self.num_heads * self.v_dim, hidden, bias_attr=bias)

    def forward(
        self,
        hidden: paddle.Tensor,
        rotary: tuple[paddle.Tensor, paddle.Tensor],
        visibility: Visibility,
        cache: LatentCache | None = None,
    ) -> paddle.Tensor:
        """[B, T, H] -> [B, T, H]; new latents are appended to ``cache`` where there is one."""
        queries = self._queries(hidden, rotary)
        latents = self._latents(hidden, rotary)
        if cache is not None:
            cache.write(visibility.start, latents)
        if visibility.step_bias is not None:
            output = self._absorbed(queries, cache.latents, visibility.step_bias)
        else:
            if visibility.start:
                latents = cache.read(visibility.start + hidden.shape[1])
            output = self._expanded(queries, latents, visibility)
        return self.o_proj(output.flatten(start_axis=2))

    def _queries(self, hidden, rotary) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The parts without and with rotation, [B, T, N, Dn] and [B, T, N, Dr]."""
        if self.q_lora_rank is None:
            queries = self.q_proj(hidden)
        else:
            queries = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden)))
        queries = queries.reshape([*hidden.shape[:2], self.num_heads, -1])
        nope, rope = paddle.split(queries, [self.nope_dim, self.rope_dim], axis=-1)
        return nope, rotate(rope, rotary, interleaved=True)

    def _latents(self, hidden, rotary) -> paddle.Tensor:
        """Normed latent and rotated shared key side by side, [B, T, R + Dr]."""
        latent, rope = paddle.split(self.kv_a_proj_with_mqa(hidden), [self.rank, self.rope_dim], axis=-1)
        rope = rotate(rope.unsqueeze(2), rotary, interleaved=True).squeeze(2)
        return paddle.concat([self.kv_a_layernorm(latent), rope], axis=-1)

    def _expanded(self, queries, latents, visibility) -> paddle.Tensor:
        """Attention with keys and values of every head, [B, T, N, Dv]."""
        latent, rope = paddle.split(latents, [self.rank, self.rope_dim], axis=-1)
        expanded = self.kv_b_proj(latent).reshape([*latent.shape[:2], self.num_heads, -1])
        nope, values = paddle.split(expanded, [self.nope_dim, self.v_dim], axis=-1)
        rope = rope.unsqueeze(2).expand([-1, -1, self.num_heads, -1])
        keys = paddle.concat([nope, rope], axis=-1)
        return causal_attention(paddle.concat(queries, axis=-1), keys, values, visibility, self.scale)

    def _absorbed(self, queries, latents, step_bias) -> paddle.Tensor:
        """Attention on the latents themselves, [B, T, N, Dv]: all heads share one key of R + Dr
        dimensions."""
        weight = self.kv_b_proj.weight.reshape([self.rank, self.num_heads, self.nope_dim + self.v_dim])
        key_weight, value_weight = paddle.split(weight, [self.nope_dim, self.v_dim], axis=-1)
        nope, rope = queries
        nope = paddle.einsum("btnd,rnd->bntr", nope, key_weight)
        absorbed = paddle.concat([nope, rope.transpose([0, 2, 1, 3])], axis=-1)  # [B, N, T, R + Dr]
        latents = latents.unsqueeze(1)  # [B, 1, S, R + Dr]
        scores = paddle.matmul(absorbed, latents, transpose_y=True)
        weights = _softmax(scores, step_bias, self.scale)
        mixed = paddle.matmul(weights, latents[..., : self.rank])  # [B, N, T, R]
        return paddle.einsum("bntr,rnd->btnd", mixed, value_weight)


class MultiHeadAttention(nn.Layer):
    """Multi-head attention with rotate-half position embedding, for configs with ``use_mla: false``
    (VL2-Tiny)."""

    def __init__(self, config: DeepseekV2Config, rotary: RotaryEmbedding):
        super().__init__()
        hidden, bias = config.hidden_size, None if config.attention_bias else False
        self.num_heads = config.num_attention_heads
        self.head_dim = hidden // self.num_heads
        self.scale = self.head_dim**-0.5
        self.q_proj = nn.Linear(hidden, hidden, bias_attr=bias)
        self.k_proj = nn.Linear(hidden, hidden, bias_attr=bias)
        self.v_proj = nn.Linear(hidden, hidden, bias_attr=bias)
        self.o_proj = nn.Linear(hidden, hidden, bias_attr=bias)

    def forward(
        self,
        hidden: paddle.Tensor,
        rotary: tuple[paddle.Tensor, paddle.Tensor],
        visibility: Visibility,
        cache: KeyValueCache | None = None,
    ) -> paddle.Tensor:
        """[B, T, H] -> [B, T, H]; new keys and values are appended to ``cache`` where there is one."""
        shape = [*hidden.shape[:2], self.num_heads, self.head_dim]
        queries = rotate(self.q_proj(hidden).reshape(shape), rotary, interleaved=False)
        keys = rotate(self.k_proj(hidden).reshape(shape), rotary, interleaved=False)
        values = self.v_proj(hidden).reshape(shape)
        if cache is not None:
            cache.write(visibility.start, _heads_first(keys), _heads_first(values))
        if visibility.step_bias is not None:
            output = self._step(queries, cache, visibility.step_bias)
        else:
            if visibility.start:
                keys, values = map(_heads_first, cache.read(visibility.start + hidden.shape[1]))
            output = causal_attention(queries, keys, values, visibility, self.scale)
        return self.o_proj(output.flatten(start_axis=2))

    def _step(self, queries, cache, step_bias) -> paddle.Tensor:
        """One query per sequence over the whole cache, [B, 1, N, D]; unfilled positions are hidden by the
        bias."""
        scores = paddle.matmul(_heads_first(queries), cache.keys, transpose_y=True)
        return _heads_first(paddle.matmul(_softmax(scores, step_bias, self.scale), cache.values))


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


def _blocked_attention(queries, keys, values, visibility, scale) -> paddle.Tensor:
    """Block after block of queries, each against the keys up to its last position only."""
    queries, keys, values = (_heads_first(x) for x in (queries, keys, values))
    blocks = []
    for first in range(0, queries.shape[2], QUERY_BLOCK):
        block = queries[:, :, first : first + QUERY_BLOCK]
        position = visibility.start + first
        seen = keys.shape[2] if first < visibility.padded_rows else position + block.shape[2]
        scores = paddle.matmul(block, keys[:, :, :seen], transpose_y=True)
        bias = causal_bias(position, block.shape[2], seen, visibility.key_mask)
        blocks.append(paddle.matmul(_softmax(scores, bias, scale), values[:, :, :seen]))
    return _heads_first(paddle.concat(blocks, axis=2) if len(blocks) > 1 else blocks[0])


def _fused_attention(queries, keys, values, visibility, scale) -> paddle.Tensor:
    """Paddle's fused attention. It scales by D ** -0.5 itself and wants values as wide as the keys."""
    queries = queries * (scale * queries.shape[-1] ** 0.5)
    value_dim = values.shape[-1]
    values = (
        F.pad(values, [0, keys.shape[-1] - value_dim], data_format="NCL")
        if value_dim < keys.shape[-1]
        else values
    )
    whole = visibility.start == 0 and visibility.key_mask is None
    bias = None
    if not whole:
        bias = causal_bias(visibility.start, queries.shape[1], keys.shape[1], visibility.key_mask)
        bias = bias.clip(min=paddle.finfo(queries.dtype).min).astype(
            queries.dtype
        )  # -inf would make padding NaN
    output = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, is_causal=whole)
    return output[..., :value_dim]


def causal_bias(position: int, rows: int, seen: int, key_mask: paddle.Tensor | None) -> paddle.Tensor:
    """float32 [B or 1, 1, rows, seen]: 0 where query ``position + row`` may see the key, else
    ``HIDDEN_SCORE``."""
    queries = paddle.arange(position, position + rows).unsqueeze(1)
    visible = (paddle.arange(seen).unsqueeze(0) <= queries).unsqueeze([0, 1])
    if key_mask is not None:
        visible = visible & key_mask[:, :seen].unsqueeze([1, 2])
    return (~visible).astype("float32") * HIDDEN_SCORE


def _softmax(scores: paddle.Tensor, bias: paddle.Tensor, scale: float) -> paddle.Tensor:
    """float32 softmax of scaled and biased scores, back in their dtype."""
    return F.softmax(scores.astype("float32") * scale + bias, axis=-1).astype(scores.dtype)


def _heads_first(x: paddle.Tensor) -> paddle.Tensor:
    """[B, T, N, D] <-> [B, N, T, D]."""
    return x.transpose([0, 2, 1, 3])
