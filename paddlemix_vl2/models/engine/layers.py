"""The model's layers on the kernels: the same results within rounding, for inference on the CPU.

Each takes the place of the layer that it is made from, and keeps of it only what it still reads.
"""

from collections.abc import Callable

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlemix_vl2.models.attention import DeepseekV2Attention, MultiHeadAttention
from paddlemix_vl2.models.dot_product import causal_attention
from paddlemix_vl2.models.engine import kernels
from paddlemix_vl2.models.engine.kernels import PackedExperts, PackedMatrix, PackedVisionBlock, pack
from paddlemix_vl2.models.layers import DeepseekV2MLP, DeepseekV2RMSNorm
from paddlemix_vl2.models.moe import DeepseekV2MoE, Routing
from paddlemix_vl2.models.vision import VisionBlock


class PackedLinear(nn.Layer):
    """``nn.Linear`` with bfloat16 or int8 weights."""

    def __init__(self, layer: nn.Linear, int8: bool):
        super().__init__()
        self.matrix, self.bias = take_matrix(layer, int8), take_vector(layer.bias)

    def forward(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., in] -> [..., out]."""
        return kernels.linear(hidden, self.matrix, self.bias)


class PackedGatedMLP(nn.Layer):
    """``DeepseekV2MLP`` as an expert that every token chooses."""

    def __init__(self, layer: DeepseekV2MLP, int8: bool):
        super().__init__()
        self.packed = PackedExperts([take_expert(layer, int8)])

    def forward(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., H] -> [..., H]."""
        tokens = hidden.flatten(stop_axis=-2)
        output = paddle.zeros(tokens.shape, "float32")
        self.packed.add_to(output, tokens, paddle.zeros([tokens.shape[0], 1], "int64"), None)
        return output.reshape(hidden.shape)


class PackedMoE(nn.Layer):
    """``DeepseekV2MoE``: its own gate, one call for all routed experts, one for the shared."""

    def __init__(self, layer: DeepseekV2MoE, int8: bool):
        super().__init__()
        self.gate = layer.gate
        self.packed = PackedExperts([take_expert(expert, int8) for expert in layer.experts])
        self.shared = None
        if layer.shared_experts is not None:
            self.shared = PackedGatedMLP(layer.shared_experts, int8)

    def forward(self, hidden: paddle.Tensor) -> tuple[paddle.Tensor, Routing]:
        """[B, T, H] -> [B, T, H] and the routing."""
        routing = self.gate(hidden)
        tokens = hidden.flatten(stop_axis=1)
        output = paddle.zeros(tokens.shape, "float32") if self.shared is None else self.shared(tokens)
        self.packed.add_to(output, tokens, routing.experts, routing.weights)
        return output.reshape(hidden.shape), routing


class FusedVisionBlock(nn.Layer):
    """``VisionBlock``, always with bfloat16 weights."""

    enable_recompute = False

    def __init__(self, layer: VisionBlock, int8: bool):
        super().__init__()
        attention, mlp = layer.attn, layer.mlp
        linear = (attention.qkv, attention.proj, mlp.fc1, mlp.fc2)
        norms = [vector for norm in (layer.norm1, layer.norm2) for vector in (norm.weight, norm.bias)]
        vectors = [take_vector(vector) for vector in (*norms, *[part.bias for part in linear])]
        matrices = [take_matrix(part, False) for part in linear]
        self.block = PackedVisionBlock(matrices, vectors, attention.num_heads, layer.norm1._epsilon)

    def forward(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[I, P, W] -> [I, P, W]; float32 in order in memory is changed in place."""
        hidden = hidden.astype("float32").contiguous()
        self.block(hidden)
        return hidden


class KernelRMSNorm(nn.Layer):
    """``DeepseekV2RMSNorm``."""

    def __init__(self, layer: DeepseekV2RMSNorm, int8: bool):
        super().__init__()
        self.epsilon, self.weight = layer.epsilon, layer.weight

    def forward(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., H] -> [..., H]."""
        return kernels.rms_norm(hidden, self.weight, self.epsilon)


class KernelLayerNorm(nn.Layer):
    """``nn.LayerNorm`` over the last axis."""

    def __init__(self, layer: nn.LayerNorm, int8: bool):
        super().__init__()
        self.epsilon, self.weight, self.bias = layer._epsilon, layer.weight, layer.bias

    def forward(self, hidden: paddle.Tensor) -> paddle.Tensor:
        """[..., W] -> [..., W]."""
        return kernels.layer_norm(hidden, self.weight, self.bias, self.epsilon)


class WideEmbedding(nn.Layer):
    """``nn.Embedding`` whose rows become float32 when they are read."""

    def __init__(self, layer: nn.Embedding, int8: bool):
        super().__init__()
        self.weight = layer.weight

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        """int64 [...] -> float32 [..., H]."""
        return F.embedding(ids, self.weight).astype("float32")


# The layer that is replaced -> what takes its place. Whole layers before their parts.
REPLACEMENTS: dict[type, type] = {
    DeepseekV2MoE: PackedMoE,
    DeepseekV2MLP: PackedGatedMLP,
    VisionBlock: FusedVisionBlock,
    DeepseekV2RMSNorm: KernelRMSNorm,
    nn.LayerNorm: KernelLayerNorm,
    nn.Embedding: WideEmbedding,
    nn.Linear: PackedLinear,
}


def attend(queries, keys, values, visibility, scale: float) -> paddle.Tensor:
    """``causal_attention``; rows with padding or several samples take Paddle's operators."""
    if visibility.key_mask is None and not visibility.runs:
        return kernels.attention(queries, keys, values, scale, visibility.start)
    return causal_attention(queries, keys, values, visibility, scale)


def multi_head_step(layer: MultiHeadAttention, hidden, rotary, visibility, cache) -> paddle.Tensor:
    """A decode step of ``MultiHeadAttention``."""
    shape = [*hidden.shape[:2], layer.num_heads, layer.head_dim]
    parts = (part(hidden).reshape(shape) for part in (layer.q_proj, layer.k_proj, layer.v_proj))
    place = (visibility.start, visibility.key_mask, layer.scale)
    return layer.o_proj(kernels.multi_head_step(*parts, rotary, cache, *place).flatten(start_axis=2))


def latent_step(layer: DeepseekV2Attention, hidden, rotary, visibility, cache) -> paddle.Tensor:
    """A decode step of ``DeepseekV2Attention``."""
    if cache.absorbed is None:
        cache.absorbed = tuple(weight.astype("bfloat16") for weight in layer.split_kv_b("float32"))
    norm = (layer.kv_a_layernorm.weight, layer.kv_a_layernorm.epsilon)
    inputs = (layer.project_queries(hidden), layer.kv_a_proj_with_mqa(hidden), norm)
    place = (visibility.start, visibility.key_mask, layer.scale)
    return layer.o_proj(kernels.latent_step(*inputs, rotary, cache, *place).flatten(start_axis=2))


# What takes over an attention layer's decode steps.
STEPS: dict[type, Callable] = {MultiHeadAttention: multi_head_step, DeepseekV2Attention: latent_step}


def take_matrix(layer: nn.Linear, int8: bool) -> PackedMatrix:
    """The weights that were packed while loading, or now; the layer's own are given up at once, so that both
    exist of one layer only."""
    if hasattr(layer, "packed"):
        return layer.packed
    matrix = pack(layer.weight, int8)
    release(layer.weight)
    return matrix


def take_vector(vector: paddle.Tensor | None) -> paddle.Tensor | None:
    return None if vector is None else vector.astype("float32")


def take_expert(layer: DeepseekV2MLP, int8: bool) -> tuple[PackedMatrix, PackedMatrix, PackedMatrix]:
    return tuple(take_matrix(part, int8) for part in (layer.gate_proj, layer.up_proj, layer.down_proj))


def release(tensor: paddle.Tensor) -> None:
    """Free a parameter's memory."""
    tensor._clear()
