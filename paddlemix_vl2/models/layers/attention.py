"""Self-attention of the language model: multi-head latent attention (MLA), and multi-head attention.

Source: published ``DeepseekV2Attention`` and, where ``use_mla`` is false, the Llama attention that it falls
back to (VL2-Tiny); MLA is section 2.1 of DeepSeek-V2 (arXiv 2405.04434), its absorbed form appendix C there.
"""

from typing import Generic, TypeVar

import paddle
from paddle import nn

from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.models.layers.attention_mask import (
    AttentionMask,
    CausalMask,
    DecodeMask,
    DenseMask,
    tensor_mask,
)
from paddlemix_vl2.models.layers.attention_ops import (
    attention_weights,
    blocked_causal_attention,
    dense_mask,
    dense_transpose,
    fused_causal_attention,
    masked_softmax,
    transpose_heads,
)
from paddlemix_vl2.models.layers.execution import DecodeFunction, ExecutionConfig, paddle_execution
from paddlemix_vl2.models.layers.kv_cache import KeyValueCache, LatentCache, round_up_capacity
from paddlemix_vl2.models.layers.norm import DeepseekV2RMSNorm
from paddlemix_vl2.models.layers.rope import PositionEmbeddings, RotaryEmbedding, apply_rotary_pos_emb

QueryParts = tuple[paddle.Tensor, paddle.Tensor]
KeysAndValues = tuple[paddle.Tensor, paddle.Tensor]
# What differs between the kinds: projected queries, what the cache keeps of new positions, and the cache.
Queries = TypeVar("Queries")
Kept = TypeVar("Kept")
Cache = TypeVar("Cache", LatentCache, KeyValueCache)


class CausalSelfAttention(nn.Layer, Generic[Queries, Kept, Cache]):
    """What both kinds share: the call, and the choice of the functions that attend.

    ::

        hidden_states --project--> queries, what the cache keeps --expand--> queries, keys, values
                      --attention_fn--> heads --o_proj--> attn_output
        one new position over a cache: --decode_fn--> heads --o_proj-->

    Args:
        config: the language model's.
        layer_idx: of the decoder layer, from 0.
        execution: how it computes; Paddle's operators on the current device where absent.
        rotary: position tables, shared by the layers of a model; its own where absent.
    """

    cache_class: type[Cache]
    scale: float
    o_proj: nn.Linear

    def __init__(
        self,
        config: DeepseekV2Config,
        layer_idx: int | None = None,
        execution: ExecutionConfig | None = None,
        rotary: RotaryEmbedding | None = None,
    ):
        super().__init__()
        execution = execution or paddle_execution()
        self.layer_idx, self.execution = layer_idx, execution
        self.rotary = rotary or RotaryEmbedding(config.rotary_dim, config)
        self.num_heads = config.num_attention_heads
        on_paddle = fused_causal_attention if execution.fused_attention else blocked_causal_attention
        self.attention_fn = execution.attention_fn or on_paddle
        self.decode_fn: DecodeFunction = execution.decode_fn(type(self)) or type(self).decode

    def forward(
        self,
        hidden_states: paddle.Tensor,
        attention_mask: AttentionMask | paddle.Tensor | None = None,
        position_ids: paddle.Tensor | None = None,
        past_key_value: Cache | None = None,
        output_attentions: bool = False,
        use_cache: bool = False,
        position_embeddings: PositionEmbeddings | None = None,
    ) -> tuple[paddle.Tensor, paddle.Tensor | None, Cache | None]:
        """Attend.

        Args:
            hidden_states: [B, T, H].
            attention_mask: made once for all layers of a pass; or a tensor, [B, T] of ones and zeros or
                [B, 1, T, S] added to the scores. Causal where absent.
            position_ids: int64 [B, T]; those behind the cache where absent.
            past_key_value: the layer's cache, to which the new positions are appended.
            output_attentions: whether to build the attention weights too, which costs a matrix T x S.
            use_cache: whether to return a cache, a new one where none is given.
            position_embeddings: cosines and sines of the positions, made once for all layers of a pass.

        Returns:
            attn_output [B, T, H]; attn_weights [B, N, T, S] or None; the cache or None.
        """
        length = hidden_states.shape[1]
        if use_cache and past_key_value is None:
            past_key_value = self.cache_class(round_up_capacity(length))
        mask = self._mask(attention_mask, past_key_value, hidden_states)
        if position_embeddings is None:
            position_embeddings = self._position_embeddings(position_ids, past_key_value, length)
        weights = None
        if isinstance(mask, DecodeMask):
            output = self.decode_fn(self, hidden_states, position_embeddings, mask, past_key_value)
        else:
            projected = self.project(hidden_states, position_embeddings)
            queries, keys, values = self.expand(*projected, past_key_value, mask.start)
            output = self.attention_fn(queries, keys, values, mask, self.scale)
            if output_attentions:
                weights = attention_weights(queries, keys, mask, self.scale)
        cache = past_key_value if use_cache else None
        return self.o_proj(output.flatten(start_axis=2)), weights, cache

    def project(
        self, hidden_states: paddle.Tensor, position_embeddings: PositionEmbeddings
    ) -> tuple[Queries, Kept]:
        """[B, T, H] -> the queries, and what the cache keeps of these positions."""
        raise NotImplementedError

    def expand(
        self, queries: Queries, kept: Kept, cache: Cache | None, start: int
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Queries [B, T, N, D], and keys [B, S, N, D] and values [B, S, N, Dv] of all positions so far."""
        raise NotImplementedError

    def decode(
        self,
        hidden_states: paddle.Tensor,
        position_embeddings: PositionEmbeddings,
        mask: DecodeMask,
        cache: Cache,
    ) -> paddle.Tensor:
        """Attention of one new position over the cache, [B, 1, N, Dv]."""
        raise NotImplementedError

    def _mask(self, attention_mask, cache, hidden_states) -> AttentionMask:
        """The mask as one of the records; dense for fused attention."""
        batch, length, _ = hidden_states.shape
        start = cache.length if cache is not None else 0
        if isinstance(attention_mask, AttentionMask):
            mask = attention_mask
        else:
            mask = CausalMask(start) if attention_mask is None else tensor_mask(attention_mask, length, start)
        if not self.execution.fused_attention or isinstance(attention_mask, DenseMask):
            return mask
        return dense_mask(mask, batch, length, mask.start + length, hidden_states.dtype)

    def _position_embeddings(self, position_ids, cache, length: int) -> PositionEmbeddings:
        start = cache.length if cache is not None else 0
        if position_ids is None:
            position_ids = paddle.arange(start, start + length).unsqueeze(0)
        return self.rotary.lookup(position_ids, start + length, self.num_heads)


class DeepseekV2Attention(CausalSelfAttention[QueryParts, paddle.Tensor, LatentCache]):
    """Multi-head latent attention, with and without a low-rank query (``q_lora_rank``).

    Prefill and training expand the latent to keys and values of every head; a decode step moves
    ``kv_b_proj`` into query and output instead and reads the latent cache, which is equal and touches fewer
    bytes.
    """

    cache_class = LatentCache

    def __init__(
        self,
        config: DeepseekV2Config,
        layer_idx: int | None = None,
        execution: ExecutionConfig | None = None,
        rotary: RotaryEmbedding | None = None,
    ):
        super().__init__(config, layer_idx, execution, rotary)
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.v_dim, self.rank = config.v_head_dim, config.latent_rank
        self.scale = (self.nope_dim + self.rope_dim) ** -0.5 * self.rotary.softmax_factor()
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

    def project(
        self, hidden_states: paddle.Tensor, position_embeddings: PositionEmbeddings
    ) -> tuple[QueryParts, paddle.Tensor]:
        """[B, T, H] -> the queries' parts without and with rotation, [B, T, N, Dn] and [B, T, N, Dr], and
        what the cache keeps: normed latent and rotated shared key side by side, [B, T, R + Dr]."""
        nope, rope = paddle.split(
            self.project_queries(hidden_states), [self.nope_dim, self.rope_dim], axis=-1
        )
        both = self.kv_a_proj_with_mqa(hidden_states)
        latent, key_rope = paddle.split(both, [self.rank, self.rope_dim], axis=-1)
        rope, key_rope = apply_rotary_pos_emb(
            rope, key_rope.unsqueeze(2), position_embeddings, interleaved=True
        )
        latents = paddle.concat([self.kv_a_layernorm(latent), key_rope.squeeze(2)], axis=-1)
        return (nope, rope), latents

    def expand(
        self, queries: QueryParts, latents: paddle.Tensor, cache: LatentCache | None, start: int
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Queries [B, T, N, Dn + Dr], and of all positions so far keys [B, S, N, Dn + Dr] and values
        [B, S, N, Dv], expanded from their latents."""
        if cache is not None:
            latents = cache.append(start, latents)
        latent, rope = paddle.split(latents, [self.rank, self.rope_dim], axis=-1)
        expanded = self.kv_b_proj(latent).reshape([*latent.shape[:2], self.num_heads, -1])
        nope, values = paddle.split(expanded, [self.nope_dim, self.v_dim], axis=-1)
        rope = rope.unsqueeze(2).expand([-1, -1, self.num_heads, -1])
        return paddle.concat(queries, axis=-1), paddle.concat([nope, rope], axis=-1), values

    def decode(
        self,
        hidden_states: paddle.Tensor,
        position_embeddings: PositionEmbeddings,
        mask: DecodeMask,
        cache: LatentCache,
    ) -> paddle.Tensor:
        """Attention on the latents themselves, [B, 1, N, Dv]; all heads share one key of R + Dr."""
        queries, latents = self.project(hidden_states, position_embeddings)
        cache.write(mask.start, latents)
        key_weight, value_weight = cache.absorbed(lambda: self.split_kv_b(cache.latents.dtype))
        nope, rope = (transpose_heads(x) for x in queries)
        query = paddle.concat([paddle.matmul(nope, key_weight), rope], axis=-1)  # [B, N, 1, R + Dr]
        cached = cache.latents.unsqueeze(1)  # [B, 1, S, R + Dr]
        scores = paddle.matmul(query, cached, transpose_y=True)
        mixed = paddle.matmul(masked_softmax(scores, mask.bias, self.scale), cached)[..., : self.rank]
        return transpose_heads(paddle.matmul(mixed, value_weight))

    def project_queries(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[B, T, H] -> [B, T, N, Dn + Dr], before the rotation."""
        if self.q_lora_rank is None:
            queries = self.q_proj(hidden_states)
        else:
            queries = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)))
        return queries.reshape([*hidden_states.shape[:2], self.num_heads, -1])

    def split_kv_b(self, dtype) -> tuple[paddle.Tensor, paddle.Tensor]:
        """``kv_b_proj`` as [N, Dn, R], which takes queries to latents, and [N, R, Dv], latents to values."""
        if type(self.kv_b_proj) is nn.Linear:
            weight = self.kv_b_proj.weight
        else:  # with an adapter or packed, the layer has no such weight: ask it for the matrix
            weight = self.kv_b_proj(paddle.eye(self.rank, dtype=dtype))
        weight = weight.reshape([self.rank, self.num_heads, self.nope_dim + self.v_dim])
        key_weight, value_weight = weight.split([self.nope_dim, self.v_dim], axis=-1)
        return dense_transpose("rnd->ndr", key_weight), dense_transpose("rnd->nrd", value_weight)


class MultiHeadAttention(CausalSelfAttention[paddle.Tensor, KeysAndValues, KeyValueCache]):
    """Multi-head attention with rotate-half position embedding, for configs with ``use_mla: false``
    (VL2-Tiny)."""

    cache_class = KeyValueCache

    def __init__(
        self,
        config: DeepseekV2Config,
        layer_idx: int | None = None,
        execution: ExecutionConfig | None = None,
        rotary: RotaryEmbedding | None = None,
    ):
        super().__init__(config, layer_idx, execution, rotary)
        hidden, bias = config.hidden_size, None if config.attention_bias else False
        self.head_dim = hidden // self.num_heads
        self.scale = self.head_dim**-0.5
        self.q_proj = nn.Linear(hidden, hidden, bias_attr=bias)
        self.k_proj = nn.Linear(hidden, hidden, bias_attr=bias)
        self.v_proj = nn.Linear(hidden, hidden, bias_attr=bias)
        self.o_proj = nn.Linear(hidden, hidden, bias_attr=bias)

    def project(
        self, hidden_states: paddle.Tensor, position_embeddings: PositionEmbeddings
    ) -> tuple[paddle.Tensor, KeysAndValues]:
        """[B, T, H] -> rotated queries, and what the cache keeps: rotated keys and values; all
        [B, T, N, D]."""
        queries, keys = apply_rotary_pos_emb(
            self._heads(self.q_proj, hidden_states),
            self._heads(self.k_proj, hidden_states),
            position_embeddings,
            interleaved=False,
        )
        return queries, (keys, self._heads(self.v_proj, hidden_states))

    def expand(
        self, queries: paddle.Tensor, keys_and_values: KeysAndValues, cache: KeyValueCache | None, start: int
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """The queries, and of all positions so far keys and values, both [B, S, N, D]."""
        keys, values = keys_and_values
        if cache is not None:
            kept = cache.append(start, transpose_heads(keys), transpose_heads(values))
            if start:
                keys, values = (transpose_heads(part) for part in kept)
        return queries, keys, values

    def decode(
        self,
        hidden_states: paddle.Tensor,
        position_embeddings: PositionEmbeddings,
        mask: DecodeMask,
        cache: KeyValueCache,
    ) -> paddle.Tensor:
        """One query per row over the whole cache, [B, 1, N, D]; unfilled positions are masked by the bias."""
        queries, new = self.project(hidden_states, position_embeddings)
        cache.write(mask.start, *(transpose_heads(part) for part in new))
        scores = paddle.matmul(transpose_heads(queries), cache.keys, transpose_y=True)
        return transpose_heads(paddle.matmul(masked_softmax(scores, mask.bias, self.scale), cache.values))

    def _heads(self, projection: nn.Layer, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[B, T, H] -> [B, T, N, D]."""
        return projection(hidden_states).reshape([*hidden_states.shape[:2], self.num_heads, self.head_dim])


def attention_class(config: DeepseekV2Config) -> type[CausalSelfAttention]:
    """The kind of attention of a config."""
    return DeepseekV2Attention if config.use_mla else MultiHeadAttention
