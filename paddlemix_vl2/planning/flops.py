"""What a model costs by arithmetic: floating-point operations and bytes, from its layers' shapes.

A multiplication with its addition counts as two operations. Norms, softmax, activations and rotations are
left out: they are below 1 % of the operations of the published models. Benchmarks divide these figures by
what the machine can do to get a hardware limit.
"""

import math

from paddlemix_vl2.checkpoints import ParameterSpec
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.models.meta import language_specs, model_specs


def vision_flops(config: DeepseekVLV2Config, tiles: int) -> int:
    """Operations of vision encoder and projector for a number of tiles (the global view is one)."""
    vision, specs = config.vision_config, model_specs(config)
    patches = vision.patches_per_side**2
    embed = patches * math.prod(specs["vision.patch_embed.proj.weight"].shape)
    linear = patches * _linear_size(specs, "vision.blocks.")
    attention = vision.layers * 2 * patches**2 * vision.width
    project = config.image_tokens_per_side**2 * _linear_size(specs, "projector.")
    return 2 * tiles * (embed + linear + attention + project)


def _linear_size(specs: dict[str, ParameterSpec], prefix: str) -> int:
    return sum(spec.size for name, spec in specs.items() if spec.linear and name.startswith(prefix))


def prefill_flops(config: DeepseekV2Config, tokens: int) -> int:
    """Operations to read a prompt without a prefix: all layers, causal attention, logits of one position."""
    if config.use_mla:
        score_width = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    else:
        score_width = 2 * (config.hidden_size // config.num_attention_heads)
    pairs = tokens * (tokens + 1) // 2
    attention = config.num_hidden_layers * config.num_attention_heads * score_width * pairs
    head = config.vocab_size * config.hidden_size
    return 2 * (tokens * layer_weights_per_token(config) + attention + head)


def training_row_flops(config: DeepseekVLV2Config, tokens: int, tiles: int) -> dict[str, int]:
    """Operations of the forward pass of a training row, ``vision`` (with the projector) and ``language``: an
    upper bound, as if one sample filled the row and every token were predicted."""
    language = config.language_config
    head = 2 * language.vocab_size * language.hidden_size
    return {
        "vision": vision_flops(config, tiles),
        "language": prefill_flops(language, tokens) + (tokens - 1) * head,
    }


def dispatched_bytes(config: DeepseekV2Config, tokens: int, bytes_per_value: int) -> int:
    """Bytes of the copies of the tokens, one for each chosen expert, that all MoE layers send to them."""
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    return moe_layers * tokens * (config.num_experts_per_tok or 0) * config.hidden_size * bytes_per_value


def decode_bytes(
    config: DeepseekV2Config, length: int, bytes_per_weight: int, bytes_per_cached: int | None = None
) -> int:
    """Bytes that one decode step of one sequence reads: the weights that it uses, once each, and the cache of
    ``length`` positions, in values as large as the weights unless it says otherwise."""
    cached = config.kv_lora_rank + config.qk_rope_head_dim if config.use_mla else 2 * config.hidden_size
    weights = layer_weights_per_token(config) + config.vocab_size * config.hidden_size
    values = config.num_hidden_layers * cached * length
    return bytes_per_weight * weights + (bytes_per_cached or bytes_per_weight) * values


def layer_weights_per_token(config: DeepseekV2Config) -> int:
    """Entries of the matrices that one token passes through in all layers, embedding and head aside: all
    linear layers and routers, and of the routed experts those that it chooses."""
    total = 0
    for name, spec in language_specs(config).items():
        if not name.startswith("model.layers."):
            continue
        if spec.expert is not None:
            total += spec.size * config.num_experts_per_tok
        elif spec.linear or name.endswith(".mlp.gate.weight"):
            total += spec.size * (config.n_routed_experts or 1)
    return total // (config.n_routed_experts or 1)
