"""The model's layers on the kernels: the same results within rounding, for inference on the CPU.

Each takes the place of the layer that it is made from, and keeps of it only what it still reads.
"""

from typing import Protocol

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlemix_vl2.kernels import ops
from paddlemix_vl2.kernels.ops import PackedExperts, PackedMatrix, PackedVisionBlock
from paddlemix_vl2.models.layers.attention import DeepseekV2Attention, MultiHeadAttention
from paddlemix_vl2.models.layers.attention_mask import CausalMask, DecodeMask, PromptMask
from paddlemix_vl2.models.layers.attention_ops import blocked_causal_attention
from paddlemix_vl2.models.layers.kv_cache import KeyValueCache, LatentCache
from paddlemix_vl2.models.layers.mlp import DeepseekV2MLP
from paddlemix_vl2.models.layers.norm import DeepseekV2RMSNorm
from paddlemix_vl2.models.layers.rope import PositionEmbeddings
from paddlemix_vl2.models.moe.context import RoutingContext
from paddlemix_vl2.models.moe.layer import DeepseekV2MoE
from paddlemix_vl2.models.moe.routing import Routing
from paddlemix_vl2.models.vision.siglip import VisionBlock


class Packer(Protocol):
    """Gives the packed weights of a layer."""

    def matrix(self, layer: nn.Linear) -> PackedMatrix: ...


class KernelLinear(nn.Layer):
    """``nn.Linear`` with bfloat16 or int8 weights."""

    def __init__(self, layer: nn.Linear, packer: Packer):
        super().__init__()
        self.matrix, self.bias = packer.matrix(layer), _float32(layer.bias)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[..., in] -> [..., out]."""
        return ops.linear(hidden_states, self.matrix, self.bias)


class KernelMLP(nn.Layer):
    """``DeepseekV2MLP`` as an expert that every token chooses."""

    def __init__(self, layer: DeepseekV2MLP, packer: Packer):
        super().__init__()
        self.packed = PackedExperts([_expert(layer, packer)])

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[..., H] -> [..., H]."""
        tokens = hidden_states.flatten(stop_axis=-2)
        output = paddle.zeros(tokens.shape, "float32")
        self.packed.add_to(output, tokens, paddle.zeros([tokens.shape[0], 1], "int64"), None)
        return output.reshape(hidden_states.shape)


class KernelMoE(nn.Layer):
    """``DeepseekV2MoE``: its own router, one call for all routed experts, one for the shared."""

    def __init__(self, layer: DeepseekV2MoE, packer: Packer):
        super().__init__()
        self.gate = layer.gate
        self.packed = PackedExperts([_expert(expert, packer) for expert in layer.experts])
        self.shared_experts = None
        if layer.shared_experts is not None:
            self.shared_experts = KernelMLP(layer.shared_experts, packer)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[B, T, H] -> [B, T, H]."""
        return self.run(hidden_states)[0]

    def run(
        self, hidden_states: paddle.Tensor, context: RoutingContext | None = None
    ) -> tuple[paddle.Tensor, Routing]:
        """[B, T, H] -> [B, T, H] and the routing."""
        routing = self.gate.route(hidden_states, context)
        tokens = hidden_states.flatten(stop_axis=1)
        if self.shared_experts is None:
            output = paddle.zeros(tokens.shape, "float32")
        else:
            output = self.shared_experts(tokens)
        self.packed.add_to(output, tokens, routing.topk_idx, routing.topk_weight)
        return output.reshape(hidden_states.shape), routing


class KernelVisionBlock(nn.Layer):
    """``VisionBlock``, always with bfloat16 weights."""

    enable_recompute = False

    def __init__(self, layer: VisionBlock, packer: Packer):
        super().__init__()
        attention, mlp = layer.attn, layer.mlp
        linear = (attention.qkv, attention.proj, mlp.fc1, mlp.fc2)
        norms = [vector for norm in (layer.norm1, layer.norm2) for vector in (norm.weight, norm.bias)]
        vectors = [_there(vector).astype("float32") for vector in (*norms, *[part.bias for part in linear])]
        matrices = [packer.matrix(part) for part in linear]
        self.block = PackedVisionBlock(matrices, vectors, attention.num_heads, layer.norm1._epsilon)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[I, P, W] -> [I, P, W]; float32 in order in memory is changed in place."""
        hidden_states = hidden_states.astype("float32").contiguous()
        self.block(hidden_states)
        return hidden_states


class KernelRMSNorm(nn.Layer):
    """``DeepseekV2RMSNorm``."""

    def __init__(self, layer: DeepseekV2RMSNorm, packer: Packer):
        super().__init__()
        self.epsilon, self.weight = layer.epsilon, layer.weight

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[..., H] -> [..., H]."""
        return ops.rms_norm(hidden_states, self.weight, self.epsilon)


class KernelLayerNorm(nn.Layer):
    """``nn.LayerNorm`` over the last axis."""

    def __init__(self, layer: nn.LayerNorm, packer: Packer):
        super().__init__()
        self.epsilon, self.weight, self.bias = layer._epsilon, _there(layer.weight), _there(layer.bias)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[..., W] -> [..., W]."""
        return ops.layer_norm(hidden_states, self.weight, self.bias, self.epsilon)


class Float32Embedding(nn.Layer):
    """``nn.Embedding`` whose rows become float32 when they are read."""

    def __init__(self, layer: nn.Embedding, packer: Packer):
        super().__init__()
        self.weight = layer.weight

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        """int64 [...] -> float32 [..., H]."""
        return F.embedding(ids, self.weight).astype("float32")


# The layer that is replaced -> what takes its place. Whole layers before their parts.
REPLACEMENTS: dict[type, type] = {
    DeepseekV2MoE: KernelMoE,
    DeepseekV2MLP: KernelMLP,
    VisionBlock: KernelVisionBlock,
    DeepseekV2RMSNorm: KernelRMSNorm,
    nn.LayerNorm: KernelLayerNorm,
    nn.Embedding: Float32Embedding,
    nn.Linear: KernelLinear,
}


def kernel_attention(
    queries: paddle.Tensor,
    keys: paddle.Tensor,
    values: paddle.Tensor,
    attention_mask: PromptMask,
    scale: float,
) -> paddle.Tensor:
    """Causal attention; rows with padding or several samples take Paddle's operators."""
    if isinstance(attention_mask, CausalMask):
        return ops.attention(queries, keys, values, scale, attention_mask.start)
    return blocked_causal_attention(queries, keys, values, attention_mask, scale)


def decode_multi_head(
    layer: MultiHeadAttention,
    hidden_states: paddle.Tensor,
    position_embeddings: PositionEmbeddings,
    mask: DecodeMask,
    cache: KeyValueCache,
) -> paddle.Tensor:
    """A decode step of ``MultiHeadAttention``."""
    shape = [*hidden_states.shape[:2], layer.num_heads, layer.head_dim]
    queries, keys, values = (
        part(hidden_states).reshape(shape) for part in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    cached, place = (cache.keys, cache.values), (mask.start, mask.key_mask, layer.scale)
    return ops.multi_head_step(queries, keys, values, position_embeddings, cached, *place)


def decode_latent(
    layer: DeepseekV2Attention,
    hidden_states: paddle.Tensor,
    position_embeddings: PositionEmbeddings,
    mask: DecodeMask,
    cache: LatentCache,
) -> paddle.Tensor:
    """A decode step of ``DeepseekV2Attention``."""

    def halves() -> tuple[paddle.Tensor, paddle.Tensor]:
        key_weight, value_weight = layer.split_kv_b("float32")
        return key_weight.astype("bfloat16"), value_weight.astype("bfloat16")

    absorbed = cache.absorbed(halves)
    norm = (layer.kv_a_layernorm.weight, layer.kv_a_layernorm.epsilon)
    inputs = (layer.project_queries(hidden_states), layer.kv_a_proj_with_mqa(hidden_states), norm)
    place = (mask.start, mask.key_mask, layer.scale)
    return ops.latent_step(*inputs, position_embeddings, cache.latents, absorbed, *place)


def _there(vector: paddle.Tensor | None) -> paddle.Tensor:
    """A weight or bias that the kernel cannot do without."""
    if vector is None:
        raise ValueError("cpu_kernels: norms and vision blocks need weight and bias; use backend='paddle'")
    return vector


def _float32(vector: paddle.Tensor | None) -> paddle.Tensor | None:
    return None if vector is None else vector.astype("float32")


def _expert(layer: DeepseekV2MLP, packer: Packer) -> tuple[PackedMatrix, PackedMatrix, PackedMatrix]:
    return packer.matrix(layer.gate_proj), packer.matrix(layer.up_proj), packer.matrix(layer.down_proj)
