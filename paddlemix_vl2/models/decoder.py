"""The language model: decoder layers of attention and (dense or MoE) MLP.

Source: published ``DeepseekV2DecoderLayer``, ``DeepseekV2Model`` and ``DeepseekV2ForCausalLM``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import paddle
from paddle import nn

from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.models.layers.attention import attention_class
from paddlemix_vl2.models.layers.attention_mask import AttentionMask, CausalMask, cache_mask
from paddlemix_vl2.models.layers.attention_ops import dense_mask
from paddlemix_vl2.models.layers.execution import ExecutionConfig, paddle_execution
from paddlemix_vl2.models.layers.kv_cache import LayerCache, ModelCache
from paddlemix_vl2.models.layers.mlp import DeepseekV2MLP
from paddlemix_vl2.models.layers.norm import DeepseekV2RMSNorm
from paddlemix_vl2.models.layers.recompute import recompute_layer
from paddlemix_vl2.models.layers.rope import PositionEmbeddings, RotaryEmbedding
from paddlemix_vl2.models.moe.context import RoutingContext
from paddlemix_vl2.models.moe.dispatch import ExpertDispatcher
from paddlemix_vl2.models.moe.layer import DeepseekV2MoE
from paddlemix_vl2.models.moe.routing import Routing


@dataclass(frozen=True)
class DecoderOutput:
    """Attributes:
    last_hidden_state: [B, T, H] after the final norm.
    hidden_states: the embeddings, each layer's output, the last one after the final norm; empty unless asked
        for.
    routings: one per MoE layer, in order.
    """

    last_hidden_state: paddle.Tensor
    hidden_states: tuple[paddle.Tensor, ...]
    routings: tuple[Routing, ...]


class DeepseekV2DecoderLayer(nn.Layer):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(
        self,
        config: DeepseekV2Config,
        layer_idx: int,
        execution: ExecutionConfig | None = None,
        rotary: RotaryEmbedding | None = None,
        dispatcher: ExpertDispatcher | None = None,
    ):
        super().__init__()
        self.enable_recompute = False  # PaddleNLP's Trainer sets it
        self.self_attn = attention_class(config)(config, layer_idx, execution, rotary)
        self.is_moe = config.is_moe_layer(layer_idx)
        self.mlp: nn.Layer
        if self.is_moe:
            self.mlp = DeepseekV2MoE(config, execution, dispatcher)
        else:
            self.mlp = DeepseekV2MLP(config.hidden_size, config.intermediate_size)
        self.input_layernorm = DeepseekV2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = DeepseekV2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden_states: paddle.Tensor,
        attention_mask: AttentionMask,
        position_embeddings: PositionEmbeddings,
        context: RoutingContext | None = None,
        past_key_value: LayerCache | None = None,
    ) -> tuple[paddle.Tensor, Routing | None]:
        """[B, T, H] -> [B, T, H], and the routing of an MoE layer."""
        attn_output, _, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            attention_mask,
            past_key_value=past_key_value,
            position_embeddings=position_embeddings,
        )
        hidden_states = hidden_states + attn_output
        normed = self.post_attention_layernorm(hidden_states)
        output, routing = self.mlp.run(normed, context) if self.is_moe else (self.mlp(normed), None)
        return hidden_states + output, routing


class DeepseekV2Model(nn.Layer):
    """Embedding, decoder layers and final norm."""

    def __init__(
        self,
        config: DeepseekV2Config,
        execution: ExecutionConfig | None = None,
        dispatcher: ExpertDispatcher | None = None,
    ):
        super().__init__()
        self.execution = execution or paddle_execution()
        self.dispatcher = dispatcher
        self.num_heads = config.num_attention_heads
        self.rotary = RotaryEmbedding(config.rotary_dim, config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.LayerList(
            [
                DeepseekV2DecoderLayer(config, layer_idx, self.execution, self.rotary, dispatcher)
                for layer_idx in range(config.num_hidden_layers)
            ]
        )
        self.norm = DeepseekV2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        inputs_embeds: paddle.Tensor,
        position_ids: paddle.Tensor,
        attention_mask: AttentionMask | None = None,
        past_key_values: ModelCache | None = None,
        context: RoutingContext | None = None,
        output_hidden_states: bool = False,
    ) -> DecoderOutput:
        """Run all layers.

        Args:
            inputs_embeds: [B, T, H].
            position_ids: int64 [B, T].
            attention_mask: of the pass; causal where absent. With a cache, its own counts.
            past_key_values: filled with the new positions; T = 1 on a filled cache is a decode step.
            context: what the routers of the MoE layers must respect.
        """
        batch, length, _ = inputs_embeds.shape
        total_length = length
        caches: Sequence[LayerCache | None] = [None] * len(self.layers)
        if past_key_values is not None:
            past_key_values.require_room(length)
            attention_mask = cache_mask(past_key_values, length)
            # Chunks of a prompt agree on it.
            total_length = max(past_key_values.length + length, past_key_values.prompt_length)
            caches = past_key_values.layers
        mask = attention_mask or CausalMask()
        if self.execution.fused_attention:
            mask = dense_mask(mask, batch, length, mask.start + length, inputs_embeds.dtype)
        position_embeddings = self.rotary.lookup(position_ids, total_length, self.num_heads)
        hidden_states = self._with_gradient(inputs_embeds)
        states: list[paddle.Tensor] = []
        routings: list[Routing] = []
        for layer, cache in zip(self.layers, caches, strict=True):
            if output_hidden_states:  # kept only then: they are the memory of all layers
                states.append(hidden_states)
            inputs = (mask, position_embeddings, context, cache)
            if layer.enable_recompute and layer.training:
                hidden_states, routing = recompute_layer(layer, hidden_states, *inputs)
            else:
                hidden_states, routing = layer(hidden_states, *inputs)
            if routing is not None:
                routings.append(routing)
        hidden_states = self.norm(hidden_states)
        if past_key_values is not None:
            past_key_values.advance(length)
        if output_hidden_states:
            states.append(hidden_states)
        return DecoderOutput(hidden_states, tuple(states), tuple(routings))

    def _with_gradient(self, inputs_embeds: paddle.Tensor) -> paddle.Tensor:
        """Where experts are spread over processes: text only, below a frozen model, has no gradient; other
        processes may have pictures, whose gradient passes through this process's experts, and all must run
        the same backward pass."""
        if self.dispatcher and paddle.is_grad_enabled() and inputs_embeds.stop_gradient:
            inputs_embeds = inputs_embeds.detach()
            inputs_embeds.stop_gradient = False
        return inputs_embeds


class DeepseekV2ForCausalLM(nn.Layer):
    """The language model with its output head; ``language`` of the published checkpoints."""

    def __init__(
        self,
        config: DeepseekV2Config,
        execution: ExecutionConfig | None = None,
        dispatcher: ExpertDispatcher | None = None,
    ):
        super().__init__()
        self.model = DeepseekV2Model(config, execution, dispatcher)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias_attr=False)
