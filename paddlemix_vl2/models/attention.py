"""Self-attention of the language model: multi-head latent attention (MLA), and multi-head attention for
VL2-Tiny.

Source: published ``DeepseekV2Attention`` and, where ``use_mla`` is false, the Llama attention that it falls
back to; MLA is section 2.1 of DeepSeek-V2 (arXiv 2405.04434), its absorbed form appendix C there.
"""

import paddle
from paddle import nn

from paddlemix_vl2.configuration import DeepseekV2Config
from paddlemix_vl2.models.cache import KeyValueCache, LatentCache
from paddlemix_vl2.models.dot_product import Visibility, biased_softmax, causal_attention, heads_first
from paddlemix_vl2.models.layers import DeepseekV2RMSNorm
from paddlemix_vl2.models.rope import RotaryEmbedding, rotate


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
        self.attend, self.step = causal_attention, None

    def forward(
        self,
        hidden: paddle.Tensor,
        rotary: tuple[paddle.Tensor, paddle.Tensor],
        visibility: Visibility,
        cache: LatentCache | None = None,
    ) -> paddle.Tensor:
        """[B, T, H] -> [B, T, H]; new latents are appended to ``cache`` where there is one."""
        if self.step is not None and visibility.step_bias is not None:
            return self.step(self, hidden, rotary, visibility, cache)
        queries = self._queries(hidden, rotary)
        latents = self._latents(hidden, rotary)
        if cache is not None:
            cache.write(visibility.start, latents)
        if visibility.step_bias is not None:
            output = self._absorbed(queries, cache, visibility.step_bias)
        else:
            if visibility.start:
                latents = cache.read(visibility.start + hidden.shape[1]).astype(latents.dtype)
            output = self._expanded(queries, latents, visibility)
        return self.o_proj(output.flatten(start_axis=2))

    def _queries(self, hidden, rotary) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The parts without and with rotation, [B, T, N, Dn] and [B, T, N, Dr]."""
        nope, rope = paddle.split(self.project_queries(hidden), [self.nope_dim, self.rope_dim], axis=-1)
        return nope, rotate(rope, rotary, interleaved=True)

    def project_queries(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[B, T, H] -> [B, T, N, Dn + Dr], before the rotation."""
        if self.q_lora_rank is None:
            queries = self.q_proj(hidden)
        else:
            queries = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden)))
        return queries.reshape([*hidden.shape[:2], self.num_heads, -1])

    def _latents(self, hidden, rotary) -> paddle.Tensor:
        """Normed latent and rotated shared key side by side, [B, T, R + Dr]."""
        latent, rope = paddle.split(self.kv_a_proj_with_mqa(hidden), [self.rank, self.rope_dim], axis=-1)
        one_head = (rotary[0][:, :, :1], rotary[1][:, :, :1])
        rope = rotate(rope.unsqueeze(2), one_head, interleaved=True).squeeze(2)
        return paddle.concat([self.kv_a_layernorm(latent), rope], axis=-1)

    def _expanded(self, queries, latents, visibility) -> paddle.Tensor:
        """Attention with keys and values of every head, [B, T, N, Dv]."""
        latent, rope = paddle.split(latents, [self.rank, self.rope_dim], axis=-1)
        expanded = self.kv_b_proj(latent).reshape([*latent.shape[:2], self.num_heads, -1])
        nope, values = paddle.split(expanded, [self.nope_dim, self.v_dim], axis=-1)
        rope = rope.unsqueeze(2).expand([-1, -1, self.num_heads, -1])
        keys = paddle.concat([nope, rope], axis=-1)
        return self.attend(paddle.concat(queries, axis=-1), keys, values, visibility, self.scale)

    def _absorbed(self, queries, cache: LatentCache, step_bias) -> paddle.Tensor:
        """Attention on the latents themselves, [B, 1, N, Dv]; all heads share one key of R + Dr."""
        if cache.absorbed is None:
            cache.absorbed = self.split_kv_b(cache.latents.dtype)
        key_weight, value_weight = cache.absorbed
        nope, rope = (heads_first(x) for x in queries)
        query = paddle.concat([paddle.matmul(nope, key_weight), rope], axis=-1)  # [B, N, 1, R + Dr]
        latents = cache.latents.unsqueeze(1)  # [B, 1, S, R + Dr]
        scores = paddle.matmul(query, latents, transpose_y=True)
        mixed = paddle.matmul(biased_softmax(scores, step_bias, self.scale), latents)[..., : self.rank]
        return heads_first(paddle.matmul(mixed, value_weight))

    def split_kv_b(self, dtype) -> tuple[paddle.Tensor, paddle.Tensor]:
        """``kv_b_proj`` as [N, Dn, R], which takes queries to latents, and [N, R, Dv], latents to values."""
        if type(self.kv_b_proj) is nn.Linear:
            weight = self.kv_b_proj.weight
        else:  # with an adapter or packed, the layer has no such weight: ask it for the matrix
            weight = self.kv_b_proj(paddle.eye(self.rank, dtype=dtype))
        weight = weight.reshape([self.rank, self.num_heads, self.nope_dim + self.v_dim])
        key_weight, value_weight = weight.split([self.nope_dim, self.v_dim], axis=-1)
        return paddle.einsum("rnd->ndr", key_weight), paddle.einsum("rnd->nrd", value_weight)


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
        self.attend, self.step = causal_attention, None

    def forward(
        self,
        hidden: paddle.Tensor,
        rotary: tuple[paddle.Tensor, paddle.Tensor],
        visibility: Visibility,
        cache: KeyValueCache | None = None,
    ) -> paddle.Tensor:
        """[B, T, H] -> [B, T, H]; new keys and values are appended to ``cache`` where there is one."""
        if self.step is not None and visibility.step_bias is not None:
            return self.step(self, hidden, rotary, visibility, cache)
        shape = [*hidden.shape[:2], self.num_heads, self.head_dim]
        queries = rotate(self.q_proj(hidden).reshape(shape), rotary, interleaved=False)
        keys = rotate(self.k_proj(hidden).reshape(shape), rotary, interleaved=False)
        values = self.v_proj(hidden).reshape(shape)
        if cache is not None:
            cache.write(visibility.start, heads_first(keys), heads_first(values))
        if visibility.step_bias is not None:
            output = self._step(queries, cache, visibility.step_bias)
        else:
            if visibility.start:
                cached = cache.read(visibility.start + hidden.shape[1])
                keys, values = (heads_first(part.astype(keys.dtype)) for part in cached)
            output = self.attend(queries, keys, values, visibility, self.scale)
        return self.o_proj(output.flatten(start_axis=2))

    def _step(self, queries, cache, step_bias) -> paddle.Tensor:
        """One query per sequence over the whole cache, [B, 1, N, D]; unfilled positions are hidden by the
        bias."""
        scores = paddle.matmul(heads_first(queries), cache.keys, transpose_y=True)
        return heads_first(paddle.matmul(biased_softmax(scores, step_bias, self.scale), cache.values))
