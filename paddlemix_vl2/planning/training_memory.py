"""What a training process keeps in memory, by arithmetic from the configuration alone.

Weights, gradients and optimizer are exact but for the allocator's rounding. Activations are an estimate: they
count what each operator keeps for its backward pass in bytes of the compute dtype, for full rows and as many
tiles as full rows can hold, and leave out what lives only inside of an operator. For the demo model's layers
they are within 20 % of what was measured on the CPU.
"""

from collections.abc import Iterable, Mapping

from paddlemix_vl2 import device
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.config.vision import VisionEncoderConfig
from paddlemix_vl2.models.loss import ROWS_PER_SLICE
from paddlemix_vl2.planning.parameters import PlannedParameter
from paddlemix_vl2.training.recipe import VL2TrainingArguments

_FLOAT32 = 4


def _width(bf16: bool) -> int:
    return 2 if bf16 else _FLOAT32


def state_bytes(parameters: Iterable[PlannedParameter], bf16: bool) -> dict[str, int]:
    """Bytes of weights, gradients, AdamW's two float32 moments and, in bfloat16, the float32 weights that
    they move, by these names."""
    parameters = list(parameters)
    weights = sum(p.size * (_FLOAT32 if p.always_float32 else _width(bf16)) for p in parameters)
    weights += sum(p.adapter for p in parameters) * _width(bf16)
    trained = sum(p.trained for p in parameters)
    return {
        "weights": weights,
        "gradients": trained * _width(bf16),
        "AdamW moments": 2 * trained * _FLOAT32,
        **({"master weights": trained * _FLOAT32} if bf16 else {}),
    }


def is_routed(name: str) -> bool:
    """Whether a parameter is one of a routed expert."""
    return ".mlp.experts." in name


def divided_state_bytes(
    parameters: Mapping[str, PlannedParameter], bf16: bool, expert_parallel_degree: int
) -> dict[str, float]:
    """:func:`state_bytes` of one of the devices that hold the routed experts together; each holds everything
    else.

    Args:
        parameters: by their names.
    """
    routed = [parameter for name, parameter in parameters.items() if is_routed(name)]
    rest = [parameter for name, parameter in parameters.items() if not is_routed(name)]
    sums: dict[str, float] = {}
    for group, parts in ((routed, expert_parallel_degree), (rest, 1)):
        for name, size in state_bytes(group, bf16).items():
            sums[name] = sums.get(name, 0) + size / parts
    return sums


def checkpoint_bytes(parameters: Iterable[PlannedParameter], bf16: bool) -> int:
    """Bytes of a checkpoint to resume from: the model, or with adapters what the base model's checkpoint does
    not have, and the optimizer."""
    parameters = list(parameters)
    states = state_bytes(parameters, bf16)
    model = states["weights"]
    if any(p.adapter for p in parameters):
        biases = sum(p.size * _FLOAT32 for p in parameters if p.always_float32)
        model = sum(p.trained for p in parameters) * _width(bf16) + biases
    return model + states["AdamW moments"] + states.get("master weights", 0)


def activation_bytes(
    config: DeepseekVLV2Config, arguments: VL2TrainingArguments, bf16: bool, recompute: bool
) -> int:
    """Bytes that a micro-batch keeps for the backward pass.

    Without recompute that is the sum over all layers; with it, the input of every layer and the values of the
    one layer that is being recomputed. A frozen vision encoder keeps nothing; a frozen language model keeps
    as much as a trained one, since the gradient passes it on its way to the projector.
    """
    rows, length = arguments.per_device_train_batch_size, arguments.max_seq_length
    language, vision = config.language_config, config.vision_config
    # Only a GPU computes in bfloat16, whatever this plan is made on.
    fused = bf16 or device.has_fused_attention()
    keys = 0 if fused else length
    layers = [language_values(language, index, keys) for index in range(language.num_hidden_layers)]
    values = rows * length * _kept(layers, language.hidden_size, recompute)
    if arguments.vision.mode != "frozen":
        patches = rows * tiles_per_row(config, length) * vision.patches_per_side**2
        values += patches * _kept([vision_values(vision, fused)] * vision.layers, vision.width, recompute)
    # Logits and their gradient, one slice of positions at a time.
    loss = 2 * min(ROWS_PER_SLICE, rows * length) * language.vocab_size * _FLOAT32
    return values * _width(bf16) + loss


def _kept(layers: list[int], width: int, recompute: bool) -> int:
    return len(layers) * width + max(layers) if recompute else sum(layers)


def tiles_per_row(config: DeepseekVLV2Config, length: int) -> int:
    """Tiles whose tokens fill a row: an upper bound, as newlines, separators and text take places too."""
    return length // config.image_tokens_per_side**2


def language_values(config: DeepseekV2Config, layer: int, num_keys: int) -> int:
    """Values per token that a decoder layer keeps.

    Attention: input, normed input (in float32 and as it goes on), queries, keys, values and output of every
    head, the latents of MLA, and a row of ``num_keys`` scores per head, 0 with fused attention. MLP: the same
    for its norm; gate, its SiLU, up and their product per expert and its input and output; the router's
    scores.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    if config.use_mla:
        query = config.qk_nope_head_dim + config.qk_rope_head_dim
        # Queries and keys once more: they are put together from their parts with and without rotation.
        attention = heads * (4 * query + 2 * config.v_head_dim + config.qk_nope_head_dim)
        attention += 2 * (config.kv_lora_rank + config.qk_rope_head_dim) + (config.q_lora_rank or 0)
    else:
        attention = 6 * hidden
    attention += heads * num_keys
    if not config.is_moe_layer(layer):
        return 8 * hidden + attention + 4 * config.intermediate_size
    routed = config.num_experts_per_tok * (3 * hidden + 4 * config.moe_intermediate_size)
    shared = 4 * (config.n_shared_experts or 0) * config.moe_intermediate_size + hidden
    return 8 * hidden + attention + routed + shared + 3 * config.n_routed_experts


def vision_values(config: VisionEncoderConfig, fused: bool) -> int:
    """Values per patch that a block of the vision encoder keeps: inputs and outputs of both norms, queries,
    keys, values and output, the MLP before and after its GELU; without fused attention also scores, and
    copies for the layout that the CPU is fast in."""
    values = 8 * config.width + 2 * config.mlp_width
    return values if fused else values + 5 * config.width + config.heads * config.patches_per_side**2
