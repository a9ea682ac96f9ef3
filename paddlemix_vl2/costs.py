"""What a model costs by arithmetic: floating-point operations and bytes, from its configuration alone.

A multiplication with its addition counts as two operations. Norms, softmax, activations and rotations are
left out: they are below 1 % of the operations of the published models. Benchmarks divide these figures by
what the machine can do to get a floor.
"""

from paddlemix_vl2.configuration import DeepseekV2Config, DeepseekVLV2Config


def vision_flops(config: DeepseekVLV2Config, tiles: int) -> int:
    """Operations of vision tower and projector for a number of tiles (the global view is one)."""
    vision, projector = config.vision_config, config.projector_config
    patches, width = vision.patches_per_side**2, vision.width
    embed = patches * 3 * vision.patch_size**2 * width
    linear = patches * (4 * width**2 + 2 * width * vision.mlp_width)
    attention = 2 * patches**2 * width
    inner = projector.n_embed * projector.mlp_ratio
    widths = [projector.input_dim * projector.downsample_ratio**2, *[inner] * (projector.depth - 1)]
    project = config.image_tokens_per_side**2 * sum(
        before * after for before, after in zip(widths, [*widths[1:], projector.n_embed], strict=True)
    )
    return 2 * tiles * (embed + vision.layers * (linear + attention) + project)


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
    """Bytes of the copies of the tokens, one for each chosen expert, that all mixture layers send to them."""
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
    """Entries of the matrices that one token passes through in all layers, embedding and head aside."""
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    dense = (config.num_hidden_layers - moe_layers) * 3 * config.hidden_size * config.intermediate_size
    experts = (config.num_experts_per_tok or 0) + (config.n_shared_experts or 0)
    mixture = experts * 3 * config.hidden_size * config.moe_intermediate_size
    router = (config.n_routed_experts or 0) * config.hidden_size
    return config.num_hidden_layers * _attention_weights(config) + dense + moe_layers * (mixture + router)


def _attention_weights(config: DeepseekV2Config) -> int:
    hidden, heads = config.hidden_size, config.num_attention_heads
    if not config.use_mla:
        return 4 * hidden**2
    query_width = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    if config.q_lora_rank is None:
        query = hidden * query_width
    else:
        query = config.q_lora_rank * (hidden + query_width)
    latent = hidden * (config.kv_lora_rank + config.qk_rope_head_dim)
    expand = config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
    return query + latent + expand + heads * config.v_head_dim * hidden
