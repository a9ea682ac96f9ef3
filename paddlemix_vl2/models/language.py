"""The language model: decoder layers of attention and (mixture of experts or dense) MLP.

Source: published ``DeepseekV2DecoderLayer``, ``DeepseekV2Model`` and ``DeepseekV2ForCausalLM``.
"""

from dataclasses import dataclass

import paddle
from paddle import nn

from paddlemix_vl2.configuration import DeepseekV2Config
from paddlemix_vl2.models.attention import DeepseekV2Attention, MultiHeadAttention
from paddlemix_vl2.models.cache import ModelCache
from paddlemix_vl2.models.dot_product import HIDDEN_SCORE, Visibility
from paddlemix_vl2.models.layers import DeepseekV2MLP, DeepseekV2RMSNorm
from paddlemix_vl2.models.moe import DeepseekV2MoE, ExpertDispatcher, Routing
from paddlemix_vl2.models.recompute import run_layer
from paddlemix_vl2.models.rope import RotaryEmbedding


@dataclass(frozen=True)
class LanguageOutput:
    """Attributes:
    hidden: [B, T, H] after the final norm.
    hidden_states: the embeddings, each layer's output, the last one after the final norm; empty unless asked
        for.
    routings: one per mixture layer, in order.
    """

    hidden: paddle.Tensor
    hidden_states: tuple[paddle.Tensor, ...]
    routings: tuple[Routing, ...]


class DeepseekV2DecoderLayer(nn.Layer):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(
        self,
        config: DeepseekV2Config,
        layer_index: int,
        rotary: RotaryEmbedding,
        dispatcher: ExpertDispatcher | None = None,
    ):
        super().__init__()
        self.enable_recompute = False  # PaddleNLP's Trainer sets it
        attention = DeepseekV2Attention if config.use_mla else MultiHeadAttention
        self.self_attn = attention(config, rotary)
        if config.is_moe_layer(layer_index):
            self.mlp = DeepseekV2MoE(config, dispatcher)
        else:
            self.mlp = DeepseekV2MLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = DeepseekV2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = DeepseekV2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden, rotary, visibility, cache=None) -> tuple[paddle.Tensor, Routing | None]:
        """[B, T, H] -> [B, T, H], and the routing of a mixture layer."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotary, visibility, cache)
        output = self.mlp(self.post_attention_layernorm(hidden))
        output, routing = output if isinstance(output, tuple) else (output, None)
        return hidden + output, routing


class DeepseekV2Model(nn.Layer):
    """Embedding, decoder layers and final norm."""

    def __init__(self, config: DeepseekV2Config, dispatcher: ExpertDispatcher | None = None):
        super().__init__()
        self.dispatcher = dispatcher
        self.num_heads = config.num_attention_heads
        head_dim = config.hidden_size // self.num_heads
        self.rotary = RotaryEmbedding(config.qk_rope_head_dim if config.use_mla else head_dim, config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.LayerList(
            [
                DeepseekV2DecoderLayer(config, index, self.rotary, dispatcher)
                for index in range(config.num_hidden_layers)
            ]
        )
        self.norm = DeepseekV2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        inputs_embeds: paddle.Tensor,
        position_ids: paddle.Tensor,
        visibility: Visibility | None = None,
        cache: ModelCache | None = None,
        output_hidden_states: bool = False,
    ) -> LanguageOutput:
        """Run all layers.

        Args:
            inputs_embeds: [B, T, H].
            position_ids: int64 [B, T].
            visibility: from :func:`mask_visibility`; with a cache, its own mask counts.
            cache: filled with the new positions; T = 1 on a filled cache is a decode step.
        """
        length = inputs_embeds.shape[1]
        total_length = length
        if self.dispatcher and paddle.is_grad_enabled() and inputs_embeds.stop_gradient:
            # Text only, below a frozen model. Other processes may have pictures, whose gradient passes
            # through this process's experts: all must run the same backward pass.
            inputs_embeds = inputs_embeds.detach()
            inputs_embeds.stop_gradient = False
        if cache:
            cache.require_room(length)
            total_length = max(cache.length + length, cache.prompt_length)  # chunks agree on it
        visibility = cached_visibility(cache, length) if cache else visibility or Visibility()
        rotary = self.rotary.lookup(position_ids, total_length, self.num_heads)
        hidden, states, routings = inputs_embeds, [], []
        for index, layer in enumerate(self.layers):
            if output_hidden_states:  # kept only then: they are the memory of all layers
                states.append(hidden)
            if cache:
                hidden, routing = layer(hidden, rotary, visibility, cache.layers[index])
            else:
                hidden, routing = run_layer(layer, hidden, rotary, visibility)
            routings.append(routing)
        hidden = self.norm(hidden)
        if cache:
            cache.length += length
        states = (*states, hidden) if output_hidden_states else ()
        return LanguageOutput(hidden, states, tuple(r for r in routings if r is not None))


class DeepseekV2ForCausalLM(nn.Layer):
    """The language model with its output head; ``language`` of the published checkpoints."""

    def __init__(self, config: DeepseekV2Config, dispatcher: ExpertDispatcher | None = None):
        super().__init__()
        self.model = DeepseekV2Model(config, dispatcher)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias_attr=False)


def cached_visibility(cache: ModelCache, length: int) -> Visibility:
    """What ``length`` new queries see that follow the filled part of ``cache``."""
    if length > 1 or cache.length == 0:
        return Visibility(cache.length, cache.key_mask)
    visible = paddle.arange(cache.capacity) <= cache.length
    if cache.key_mask is not None:
        visible = (visible & cache.key_mask).unsqueeze([1, 2])
    return Visibility(cache.length, cache.key_mask, step_bias=(~visible).astype("float32") * HIDDEN_SCORE)


def mask_visibility(attention_mask: paddle.Tensor) -> Visibility:
    """What the queries of a whole sequence see, given its mask [B, T]."""
    if bool(attention_mask.all()):
        return Visibility()
    leading_padding = (attention_mask.astype("int64").cumsum(axis=1) == 0).astype("int64").sum(axis=1)
    return Visibility(key_mask=attention_mask.astype("bool"), padded_rows=int(leading_padding.max()))


def positions_from_mask(attention_mask: paddle.Tensor) -> paddle.Tensor:
    """Position ids that skip left padding: int [B, T] of ones and zeros -> int64 [B, T]."""
    return (attention_mask.astype("int64").cumsum(axis=1) - 1).clip(min=0)


def segment_positions(segment_ids: paddle.Tensor) -> paddle.Tensor:
    """Position ids that begin anew with every sample of a row: int [B, T] -> int64 [B, T]."""
    index = paddle.arange(segment_ids.shape[1]).expand(segment_ids.shape)
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    begins = paddle.concat([paddle.ones([segment_ids.shape[0], 1], "bool"), changes], axis=1)
    first = paddle.cummax(paddle.where(begins, index, paddle.zeros_like(index)), axis=1)[0]
    return index - first
