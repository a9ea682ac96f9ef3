"""What answering keeps in memory, by arithmetic from the configuration alone.

Weights and cache are exact but for the allocator's rounding. Activations are the values that exist at once in
the widest moment of each phase: a prompt through two layers of VL2-Tiny's and of VL2-Small's sizes, on the
CPU, took between 83 % and 100 % of these figures by Paddle's counters of allocated memory. What stays below
50 MB is left out: routing, rotary tables of all positions, most buffers of the kernels.

B sequences, T positions per forward pass, S positions in all, H hidden_size, N heads, V vocabulary.
"""

from dataclasses import dataclass

from paddlemix_vl2.checkpoints import ParameterSpec
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.device import PATCHES_PER_PASS
from paddlemix_vl2.kernels.ops import BLOCK_COLUMNS, BLOCK_ROWS, QUERY_BLOCK
from paddlemix_vl2.models.cpu_backend import kernel_execution
from paddlemix_vl2.models.cpu_backend.convert import LARGE_TABLE
from paddlemix_vl2.models.layers.execution import ExecutionConfig
from paddlemix_vl2.models.meta import model_specs
from paddlemix_vl2.models.vision_language import UNUSED_PARAMETERS

# Largest resident size (getrusage) on Linux, Python 3.11, PaddlePaddle 3.3.1, PaddleNLP 3.0.0b4: 563 MB with
# this package imported, 634 MB with the 128k tokenizer, 15 MB more once a model of a few MB has answered.
PROCESS_BYTES = 650_000_000

# Rows up to which the kernels multiply one by one (kernels/native/linear.cpp; a test compares them).
FEW_ROWS = 4

_FLOAT32, _BFLOAT16, _INT8 = 4, 2, 1

# What ``from_pretrained`` can make.
EXECUTIONS = (
    ExecutionConfig("cpu"),
    kernel_execution("bfloat16"),
    kernel_execution("int8"),
    ExecutionConfig("gpu", fused_attention=True),
    ExecutionConfig("gpu", weight_dtype="bfloat16", fused_attention=True),
)


def _value_bytes(execution: ExecutionConfig) -> int:
    """Bytes of an activation; the kernels take and give float32."""
    return _FLOAT32 if execution.packed or execution.weight_dtype == "float32" else _BFLOAT16


def _cached_bytes(execution: ExecutionConfig) -> int:
    """Bytes of a value in the cache."""
    return _BFLOAT16 if execution.cache_dtype == "bfloat16" else _value_bytes(execution)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device that the model runs on: the processor's memory, or the GPU's.

    Attributes:
        process: what Paddle takes without a model; 0 on a GPU, where its context was not measured.
        weights, cache: the whole answer long.
        vision, prefill, logits: activations of the three phases, one after the other.
    """

    process: int
    weights: int
    cache: int
    vision: int
    prefill: int
    logits: int

    @property
    def loaded(self) -> int:
        """Before the first answer. A checkpoint is read, and packed for the kernels, tensor by tensor, the
        largest first, so that loading takes no more than the model itself."""
        return self.process + self.weights

    @property
    def answering(self) -> int:
        """The most from the first answer on, in the largest phase."""
        return self.process + self.weights + self.cache + max(self.vision, self.prefill, self.logits)


def estimate(
    config: DeepseekVLV2Config,
    execution: ExecutionConfig,
    positions: int = 2048,
    batch_size: int = 1,
    chunk_size: int | None = None,
) -> MemoryEstimate:
    """All parts.

    Args:
        positions: of prompt and answer together; the phases are counted for a prompt of them all.
        chunk_size: positions of the prompt per forward pass; all where absent.

    Raises:
        ValueError: a number is below 1, or the model has fewer positions.
    """
    for name, value in (("positions", positions), ("batch_size", batch_size), ("chunk_size", chunk_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    language = config.language_config
    if positions > language.max_sequence_length:
        raise ValueError(f"{positions} positions, but the model has {language.max_sequence_length}")
    process = PROCESS_BYTES if execution.device == "cpu" else 0
    return MemoryEstimate(
        process=process,
        weights=weight_bytes(config, execution),
        cache=cache_bytes(language, execution, positions, batch_size),
        vision=vision_bytes(config, execution, positions, batch_size),
        prefill=prefill_bytes(language, execution, positions, batch_size, chunk_size),
        logits=logits_bytes(language, execution, batch_size),
    )


def weight_bytes(config: DeepseekVLV2Config, execution: ExecutionConfig) -> int:
    """Bytes of all tensors, in the dtype of the weights but for those that are float32 always;
    on the kernels as in :func:`_packed_bytes`."""
    width = _FLOAT32 if execution.weight_dtype == "float32" else _BFLOAT16
    total = 0
    for spec in model_specs(config).values():
        if spec.dtype == "float32":
            total += spec.size * _FLOAT32
        elif execution.packed:
            total += _packed_bytes(spec, execution.weight_dtype == "int8")
        else:
            total += spec.size * width
    return total


def _packed_bytes(spec: ParameterSpec, int8: bool) -> int:
    """Bytes of a tensor on the kernels (:mod:`paddlemix_vl2.kernels`).

    Linear weights: bfloat16 in whole blocks of 32 rows x 64 columns, or int8 with columns rounded up to 64
    and a float32 scale for each; the vision encoder's are bfloat16 always, and its pooling head is dropped.
    Everything else is float32, but for large tables, which stay bfloat16.
    """
    if spec.name.startswith(UNUSED_PARAMETERS):
        return 0
    if not spec.linear:
        return spec.size * (_BFLOAT16 if spec.size >= LARGE_TABLE else _FLOAT32)
    columns, rows = _round_up(spec.shape[0], BLOCK_COLUMNS), spec.shape[1]  # published weights are [out, in]
    if int8 and not spec.name.startswith("vision."):
        return columns * (rows * _INT8 + _FLOAT32)
    return columns * _round_up(rows, BLOCK_ROWS) * _BFLOAT16


def cache_bytes(config: DeepseekV2Config, execution: ExecutionConfig, positions: int, batch_size: int) -> int:
    """Bytes of ``models/layers/kv_cache.py``.

    Per layer, multi-head attention keeps keys and values, B x S x 2 hidden_size; MLA keeps
    B x S x (kv_lora_rank + qk_rope_head_dim) and, from the first decode step on, ``kv_b_proj`` in another
    layout, N x (qk_nope_head_dim + v_head_dim) x kv_lora_rank.
    """
    if config.use_mla:
        heads = config.num_attention_heads * (config.qk_nope_head_dim + config.v_head_dim)
        per_position = config.kv_lora_rank + config.qk_rope_head_dim
        values = batch_size * positions * per_position + heads * config.kv_lora_rank
    else:
        values = batch_size * positions * 2 * config.hidden_size
    return config.num_hidden_layers * values * _cached_bytes(execution)


def vision_bytes(
    config: DeepseekVLV2Config, execution: ExecutionConfig, positions: int, batch_size: int
) -> int:
    """A block of the vision encoder, over the tiles that go through it at once, and the pictures themselves.

    Values per patch, of P patches of width W with an MLP of width M:

    - attention: input, its norm, queries, keys and values together and apart, 8 W, and without fused
      attention N x P scores and as many weights;
    - MLP: 2 W, and M before and after the GELU.

    On the kernels patches and positions before the first block, 2 W, and in bfloat16 W and the larger of 3 W
    and M, in buffers that stay.

    Pictures: as many tiles as the positions can hold, with their pixels as the batch has them and once more
    gathered, float32, and their image tokens.
    """
    vision = config.vision_config
    patches, width, inner = vision.patches_per_side**2, vision.width, vision.mlp_width
    tiles_at_once = max(1, PATCHES_PER_PASS[execution.device] // patches)
    if execution.packed:
        per_patch = 2 * width + (width + max(3 * width, inner)) // 2
    else:
        scores = 2 * vision.heads * patches if execution.device == "cpu" else 0
        per_patch = max(8 * width + scores, 2 * width + 2 * inner)
    tokens = config.image_tokens_per_side**2
    tiles = batch_size * (positions // tokens)
    pixels = 2 * 3 * vision.image_size**2 * _FLOAT32
    features = tokens * config.language_config.hidden_size * _value_bytes(execution)
    block = min(tiles, tiles_at_once) * patches * per_patch * _value_bytes(execution)
    return block + tiles * (pixels + features)


def prefill_bytes(
    config: DeepseekV2Config,
    execution: ExecutionConfig,
    positions: int,
    batch_size: int,
    chunk_size: int | None = None,
) -> int:
    """The widest decoder layer over the last chunk of T positions, behind S - T others.

    B x S x H embeddings, B x T x H of them in the chunk and as many rotary values as queries have rotated
    dimensions; attention or the MLP, whichever takes more; the kernels' buffers, which are never freed.
    """
    length = min(chunk_size or positions, positions)
    hidden, heads = config.hidden_size, config.num_attention_heads
    rotated = heads * config.qk_rope_head_dim if config.use_mla else hidden
    held = batch_size * (
        hidden * (positions + length) * _value_bytes(execution) + length * rotated * _FLOAT32
    )
    attention = _attention_bytes(config, execution, positions, length, batch_size)
    mlp = _mlp_bytes(config, execution, batch_size * length)
    buffers = _buffer_bytes(config, execution, batch_size * length) if execution.packed else 0
    return held + max(attention, mlp) + buffers


def _attention_bytes(
    config: DeepseekV2Config, execution: ExecutionConfig, positions: int, length: int, batch_size: int
) -> int:
    """Attention of B x T queries to B x S keys.

    Per query: input, its norm, queries and outputs. Per key: keys and values. Queries, keys and values exist
    once more, laid out by heads, but for a single sequence on the kernels (several are padded, and padding
    takes Paddle's operators). With MLA they are put together before, and the parts are gone when the scores
    come; see :func:`_expansion_values`.

    Scores, float32, as they are, biased and after the softmax: N x min(T, 256) x S on the CPU. With fused
    attention a bias of T x S in three forms, which chunks and padding need.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    fast = execution.packed and batch_size == 1
    times = 1 if fast else 2
    expansion = 0
    if config.use_mla:
        query = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
        value = heads * config.v_head_dim
        per_query, per_key = 2 * hidden + times * query + value, times * (query + value)
        expansion = _expansion_values(config, positions, length)
    else:
        per_query = 2 * hidden + times * 2 * hidden
        per_key = (1 + times) * 2 * hidden  # once more as the cache has them
    values = length * per_query + positions * per_key
    scores = length * positions
    if execution.device == "cpu":
        scores = 0 if fast else heads * min(length, QUERY_BLOCK) * positions
    width = _value_bytes(execution)
    return batch_size * max(values * width + 3 * scores * _FLOAT32, expansion * width)


def _expansion_values(config: DeepseekV2Config, positions: int, length: int) -> int:
    """Values that MLA has at once, for a sequence, when it expands its latents.

    Per query: input, its norm and queries. Per key: the latents in two parts, the product that expands them
    and its two parts, the rotated key repeated for all heads, and the keys, joined.
    """
    heads, rope = config.num_attention_heads, config.qk_rope_head_dim
    query, latent = heads * (config.qk_nope_head_dim + rope), config.kv_lora_rank + rope
    product = heads * (config.qk_nope_head_dim + config.v_head_dim)
    per_query = 2 * config.hidden_size + query
    return length * per_query + positions * (2 * latent + 2 * product + heads * rope + query)


def _mlp_bytes(config: DeepseekV2Config, execution: ExecutionConfig, tokens: int) -> int:
    """The widest MLP over M = B x T tokens, of width W: a dense layer's, or all shared experts'.

    Input, its norm and output, 3 H; then the larger of gate, its SiLU, up and their product, 4 W, and the
    tokens of K experts, 5 K H: sorted, cut by expert, outputs, joined, and back in order (there also in
    float32, where the weights have 16 bits). On the kernels 4 H.
    """
    hidden = config.hidden_size
    if execution.packed:
        return tokens * 4 * hidden * _FLOAT32
    top_k = config.num_experts_per_tok if any(_mixtures(config)) else 0
    per_token = 3 * hidden + max(4 * _mlp_width(config), 5 * top_k * hidden)
    joined = top_k * hidden * _FLOAT32 if _value_bytes(execution) < _FLOAT32 else 0
    return tokens * (per_token * _value_bytes(execution) + joined)


def _buffer_bytes(config: DeepseekV2Config, execution: ExecutionConfig, tokens: int) -> int:
    """What the kernels keep for an MLP that M tokens go through: tokens, gate, product and output, in float32
    or bfloat16, 6 bytes x M x (H + W); int8 weights are widened to bfloat16, one matrix H x W at a time."""
    hidden, width = config.hidden_size, _mlp_width(config)
    widened = hidden * width * _BFLOAT16 if execution.weight_dtype == "int8" else 0
    return tokens * (hidden + width) * (_FLOAT32 + _BFLOAT16) + widened


def _mlp_width(config: DeepseekV2Config) -> int:
    """Of the widest MLP that every token goes through, or may."""
    mixture = config.moe_intermediate_size * max(1, config.n_shared_experts or 0)
    return max(mixture if is_mixture else config.intermediate_size for is_mixture in _mixtures(config))


def _mixtures(config: DeepseekV2Config) -> list[bool]:
    """Which layers are MoE layers."""
    return [config.is_moe_layer(layer) for layer in range(config.num_hidden_layers)]


def logits_bytes(config: DeepseekV2Config, execution: ExecutionConfig, batch_size: int) -> int:
    """Logits of the last position and what sampling makes of them, B x vocab_size in float32 eight times.

    With int8 weights and a batch of more rows than the kernels multiply one by one, also the widened output
    head.
    """
    logits = 8 * batch_size * config.vocab_size * _FLOAT32
    if execution.packed and execution.weight_dtype == "int8" and batch_size > FEW_ROWS:
        logits += config.vocab_size * config.hidden_size * _BFLOAT16
    return logits


def _round_up(value: int, to: int) -> int:
    return -(-value // to) * to
