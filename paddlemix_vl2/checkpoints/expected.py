"""The tensors of a checkpoint, derived from its configuration: published names and shapes.

Source: the published checkpoints and the modules of the published DeepSeek-VL2 code. The counts of the three
published models are in the tests.
"""

import re
from collections.abc import Iterator

from paddlemix_vl2.configuration import (
    DeepseekV2Config,
    DeepseekVLV2Config,
    MlpProjectorConfig,
    VisionEncoderConfig,
)

Named = tuple[str, tuple[int, ...]]
_EXPERT = re.compile(r"\.mlp\.experts\.(\d+)\.")


def expected_tensors(config: DeepseekVLV2Config) -> dict[str, tuple[int, ...]]:
    """Published name -> published shape of every tensor of a checkpoint, in the order of the model.

    Linear weights are [out, in], as in the published files; ``rules.shape_in`` gives the shapes in Paddle's.
    """
    hidden = config.language_config.hidden_size
    return dict(
        [
            *_vision(config.vision_config),
            *_projector(config.projector_config),
            ("image_newline", (hidden,)),
            ("view_seperator", (hidden,)),
            *_language(config.language_config),
        ]
    )


def expert_of(name: str) -> int | None:
    """The routed expert that a tensor (or an adapter of it) belongs to; None for all others.

    Example:
        >>> expert_of("language.model.layers.1.mlp.experts.12.up_proj.weight")
        12
    """
    found = _EXPERT.search(name)
    return int(found[1]) if found else None


def held_tensors(expected: dict[str, tuple[int, ...]], experts: range | None) -> dict[str, tuple[int, ...]]:
    """Those of the tensors that a process has which holds these routed experts only; all where None."""
    if experts is None:
        return expected
    return {
        name: shape
        for name, shape in expected.items()
        if (expert := expert_of(name)) is None or expert in experts
    }


def _linear(name: str, size_in: int, size_out: int, bias: bool = False) -> Iterator[Named]:
    yield f"{name}.weight", (size_out, size_in)
    if bias:
        yield f"{name}.bias", (size_out,)


def _layer_norm(name: str, width: int) -> Iterator[Named]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _vision(config: VisionEncoderConfig) -> Iterator[Named]:
    width, patch = config.width, config.patch_size
    yield "vision.pos_embed", (1, config.patches_per_side**2, width)
    yield "vision.patch_embed.proj.weight", (width, 3, patch, patch)
    yield "vision.patch_embed.proj.bias", (width,)
    for index in range(config.layers):
        block = f"vision.blocks.{index}"
        yield from _layer_norm(f"{block}.norm1", width)
        yield from _linear(f"{block}.attn.qkv", width, 3 * width, bias=True)
        yield from _linear(f"{block}.attn.proj", width, width, bias=True)
        yield from _layer_norm(f"{block}.norm2", width)
        yield from _vision_mlp(f"{block}.mlp", config)
    yield from _layer_norm("vision.norm", width)
    if config.global_pool == "map":
        yield from _attention_pool("vision.attn_pool", config)


def _vision_mlp(name: str, config: VisionEncoderConfig) -> Iterator[Named]:
    yield from _linear(f"{name}.fc1", config.width, config.mlp_width, bias=True)
    yield from _linear(f"{name}.fc2", config.mlp_width, config.width, bias=True)


def _attention_pool(name: str, config: VisionEncoderConfig) -> Iterator[Named]:
    """SigLIP's pooling head: in every published file, used by no forward pass of DeepSeek-VL2."""
    width = config.width
    yield f"{name}.latent", (1, 1, width)
    yield from _linear(f"{name}.q", width, width, bias=True)
    yield from _linear(f"{name}.kv", width, 2 * width, bias=True)
    yield from _linear(f"{name}.proj", width, width, bias=True)
    yield from _layer_norm(f"{name}.norm", width)
    yield from _vision_mlp(f"{name}.mlp", config)


def _projector(config: MlpProjectorConfig) -> Iterator[Named]:
    """``depth`` linear layers; the activations between them take the odd places of ``projector.layers``."""
    inner = config.n_embed * config.mlp_ratio
    sizes = [config.input_dim * config.downsample_ratio**2, *[inner] * (config.depth - 1), config.n_embed]
    for index in range(config.depth):
        yield from _linear(f"projector.layers.{2 * index}", sizes[index], sizes[index + 1], bias=True)


def _language(config: DeepseekV2Config) -> Iterator[Named]:
    hidden = config.hidden_size
    yield "language.model.embed_tokens.weight", (config.vocab_size, hidden)
    for index in range(config.num_hidden_layers):
        layer = f"language.model.layers.{index}"
        attention = _latent_attention if config.use_mla else _multi_head_attention
        yield from attention(f"{layer}.self_attn", config)
        if config.is_moe_layer(index):
            yield from _experts(f"{layer}.mlp", config)
        else:
            yield from _gated_mlp(f"{layer}.mlp", hidden, config.intermediate_size)
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
    yield "language.model.norm.weight", (hidden,)
    yield from _linear("language.lm_head", hidden, config.vocab_size)


def _multi_head_attention(name: str, config: DeepseekV2Config) -> Iterator[Named]:
    hidden, bias = config.hidden_size, config.attention_bias
    for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
        yield from _linear(f"{name}.{projection}", hidden, hidden, bias)


def _latent_attention(name: str, config: DeepseekV2Config) -> Iterator[Named]:
    """MLA (arXiv 2405.04434, section 2.1); queries are low-rank as well where ``q_lora_rank`` is set."""
    hidden, heads = config.hidden_size, config.num_attention_heads
    rank, rope = config.kv_lora_rank, config.qk_rope_head_dim
    query_width = heads * (config.qk_nope_head_dim + rope)
    if config.q_lora_rank is None:
        yield from _linear(f"{name}.q_proj", hidden, query_width)
    else:
        yield from _linear(f"{name}.q_a_proj", hidden, config.q_lora_rank, config.attention_bias)
        yield f"{name}.q_a_layernorm.weight", (config.q_lora_rank,)
        yield from _linear(f"{name}.q_b_proj", config.q_lora_rank, query_width)
    yield from _linear(f"{name}.kv_a_proj_with_mqa", hidden, rank + rope, config.attention_bias)
    yield f"{name}.kv_a_layernorm.weight", (rank,)
    yield from _linear(f"{name}.kv_b_proj", rank, heads * (config.qk_nope_head_dim + config.v_head_dim))
    yield from _linear(f"{name}.o_proj", heads * config.v_head_dim, hidden, config.attention_bias)


def _gated_mlp(name: str, hidden: int, width: int) -> Iterator[Named]:
    yield from _linear(f"{name}.gate_proj", hidden, width)
    yield from _linear(f"{name}.up_proj", hidden, width)
    yield from _linear(f"{name}.down_proj", width, hidden)


def _experts(name: str, config: DeepseekV2Config) -> Iterator[Named]:
    hidden, width = config.hidden_size, config.moe_intermediate_size
    for index in range(config.n_routed_experts):
        yield from _gated_mlp(f"{name}.experts.{index}", hidden, width)
    yield f"{name}.gate.weight", (config.n_routed_experts, hidden)
    if config.topk_method == "noaux_tc":
        yield f"{name}.gate.e_score_correction_bias", (config.n_routed_experts,)
    if config.n_shared_experts is not None:
        # The shared experts are one MLP of their summed width.
        yield from _gated_mlp(f"{name}.shared_experts", hidden, config.n_shared_experts * width)
