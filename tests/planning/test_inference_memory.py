"""Memory against sums written out by hand, the published totals, the model itself and what was measured."""

import re
from pathlib import Path

import paddle
import pytest

from paddlemix_vl2 import DeepseekVLV2ForCausalLM, device
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.kernels import build, ops
from paddlemix_vl2.models.cpu_backend import kernel_execution, layers
from paddlemix_vl2.models.cpu_backend.convert import _widen
from paddlemix_vl2.models.layers.execution import describe
from paddlemix_vl2.planning import inference_memory as memory
from paddlemix_vl2.planning.inference_memory import EXECUTIONS, estimate

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
FLOAT32, BFLOAT16, INT8 = EXECUTIONS[:3]
GPU = EXECUTIONS[4]


def test_what_can_be_estimated():
    named = [tuple(describe(execution).values()) for execution in EXECUTIONS]
    assert named == [
        ("cpu", "paddle", "float32"),
        ("cpu", "cpu_kernels", "bfloat16"),
        ("cpu", "cpu_kernels", "int8"),
        ("gpu", "paddle", "float32"),
        ("gpu", "paddle", "bfloat16"),
    ]


def published(name):
    return DeepseekVLV2Config.from_json(CONFIGS / f"{name}.json")


@pytest.fixture
def small():
    """Width 8 everywhere, 4 patches and one image token per tile, one dense layer with one head."""
    return DeepseekVLV2Config(
        vision_config={"image_size": 28, "width": 8, "layers": 1, "heads": 1, "mlp_ratio": 2.0},
        projector_config={"input_dim": 8, "n_embed": 8},
        language_config={
            "vocab_size": 10,
            "hidden_size": 8,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "use_mla": False,
        },
    )


def test_weights_by_hand(small):
    block = 16 + (192 + 24) + (64 + 8) + 16 + (128 + 16) + (128 + 8)
    pool = 8 + (64 + 8) + (128 + 16) + (64 + 8) + 16 + (128 + 16) + (128 + 8)
    vision = 32 + (8 * 3 * 14 * 14 + 8) + block + 16 + pool
    projector = (32 * 8 + 8) + (8 * 8 + 8)
    language = 80 + 4 * 64 + 3 * 128 + 2 * 8 + 8 + 80
    total = vision + projector + 2 * 8 + language
    assert memory.weight_bytes(small, FLOAT32) == 4 * total
    assert memory.weight_bytes(small, GPU) == 2 * total


def test_packed_weights_by_hand(small):
    """Every matrix is one block of 32 x 64: four of the vision encoder, two, eight."""
    biases_and_norms = 16 + 24 + 8 + 16 + 16 + 8
    wide = 32 + (8 * 3 * 14 * 14 + 8) + biases_and_norms + 16 + (8 + 8) + 2 * 8 + 80 + 2 * 8 + 8
    assert memory.weight_bytes(small, BFLOAT16) == 2 * 32 * 64 * (4 + 2 + 8) + 4 * wide
    # 64 columns with a scale each; 32 + 8 rows of the projector, seven matrices of 8 rows and one of 16.
    int8 = 64 * (32 + 4) + 64 * (8 + 4) + 7 * 64 * (8 + 4) + 64 * (16 + 4)
    assert memory.weight_bytes(small, INT8) == 2 * 32 * 64 * 4 + int8 + 4 * wide


def test_phases_by_hand(small):
    pixels, features = 2 * 3 * 28**2 * 4, 8 * 4
    # Attention with 4 scores and 4 weights per patch: 8 * 8 + 2 * 4 values, for three tiles of four patches.
    assert memory.vision_bytes(small, FLOAT32, 3, 1) == 4 * 3 * 4 * (64 + 8) + 3 * (pixels + features)
    assert memory.vision_bytes(small, BFLOAT16, 3, 1) == 4 * 3 * 4 * 32 + 3 * (pixels + features)
    assert memory.vision_bytes(small, GPU, 3, 1) == 2 * 3 * 4 * 64 + 3 * (pixels + features // 2)
    language = small.language_config
    # Three positions: embeddings twice and rotary values; attention takes more than the MLP.
    attention = 4 * 3 * (48 + 48) + 3 * 4 * 3 * 3
    assert memory.prefill_bytes(language, FLOAT32, 3, 1) == 4 * 3 * (8 + 8 + 8) + attention
    # Two of the three positions at a time.
    attention = 4 * (2 * 48 + 3 * 48) + 3 * 4 * 2 * 3
    assert memory.prefill_bytes(language, FLOAT32, 3, 1, 2) == 4 * (8 * (3 + 2) + 8 * 2) + attention
    # On the kernels one sequence's attention needs neither scores nor a second layout; their own buffers.
    attention, buffers = 4 * 3 * (32 + 32), 6 * 3 * (8 + 16)
    assert memory.prefill_bytes(language, BFLOAT16, 3, 1) == 4 * 3 * 24 + attention + buffers
    assert memory.prefill_bytes(language, INT8, 3, 1) == 4 * 3 * 24 + attention + buffers + 2 * 8 * 16
    assert memory.logits_bytes(language, INT8, 4) == 8 * 4 * 10 * 4
    assert memory.logits_bytes(language, INT8, 5) == 8 * 5 * 10 * 4 + 2 * 10 * 8


def test_caches_by_hand():
    assert (
        memory.cache_bytes(published("tiny").language_config, FLOAT32, 100, 3) == 12 * 3 * 100 * 2 * 1280 * 4
    )
    laid_out = 16 * 256 * 512
    assert (
        memory.cache_bytes(published("small").language_config, GPU, 100, 3)
        == 27 * (3 * 100 * 576 + laid_out) * 2
    )


# Parameters in total; of Base's, 29 x 72 are correction biases in float32.
TOTALS = {"tiny": (3_370_501_440, 0), "small": (16_148_349_504, 0), "base": (27_480_134_248, 29 * 72)}


@pytest.mark.parametrize("name", TOTALS)
def test_published_models(name):
    config, (total, always_float32) = published(name), TOTALS[name]
    assert memory.weight_bytes(config, FLOAT32) == 4 * total
    assert memory.weight_bytes(config, GPU) == 2 * (total + always_float32)
    parts = [estimate(config, execution) for execution in (INT8, BFLOAT16, FLOAT32)]
    assert parts[0].weights < parts[1].weights < parts[2].weights
    assert parts[0].answering < parts[1].answering < parts[2].answering
    # A byte per weight, but for the vision encoder and the table of embeddings.
    tower_and_table = 0.5e9 + config.language_config.vocab_size * config.language_config.hidden_size
    assert total < parts[0].weights < total + tower_and_table


@pytest.mark.parametrize("execution", EXECUTIONS, ids=lambda one: "-".join(describe(one).values()))
@pytest.mark.parametrize("name", TOTALS)
def test_more_takes_more(name, execution):
    config = published(name)
    lengths = [estimate(config, execution, positions).answering for positions in (1, 256, 257, 2048, 4096)]
    batches = [estimate(config, execution, 512, batch).answering for batch in (1, 2, 5, 16)]
    chunks = [estimate(config, execution, 4096, chunk_size=chunk).prefill for chunk in (64, 512, 4096)]
    for sizes in (lengths, batches, chunks):
        assert sizes == sorted(set(sizes))
    assert estimate(config, execution, 100, chunk_size=500) == estimate(config, execution, 100)


def test_a_measured_run():
    """docs/performance.md: VL2-Tiny in float32, 1,263 + 32 positions; 14.11 GB while loading, 14.83 at most.

    3 %: blocks that the C library keeps and the threads' buffers are not counted.
    """
    parts = estimate(published("tiny"), FLOAT32, positions=1295)
    assert parts.loaded / 1e9 == pytest.approx(14.11, rel=0.03)
    assert parts.answering / 1e9 == pytest.approx(14.83, rel=0.03)


@pytest.mark.parametrize("use_mla", [True, False])
@pytest.mark.skipif(device.is_gpu(), reason="Paddle's counters of the processor's memory")
def test_activations_are_those_that_paddle_counts(use_mla):
    """15 %: small layers, where what is left out counts more."""
    config = DeepseekVLV2Config(
        vision_config={"width": 144, "layers": 1, "heads": 4},
        projector_config={"input_dim": 144, "n_embed": 256},
        language_config={
            "vocab_size": 64,
            "hidden_size": 256,
            "intermediate_size": 512,
            "moe_intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "first_k_dense_replace": 1,
            "use_mla": use_mla,
            "q_lora_rank": None,
            "kv_lora_rank": 64,
            "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32,
            "v_head_dim": 64,
        },
    )
    model = DeepseekVLV2ForCausalLM(config)
    model.eval()
    ids = paddle.zeros([1, 512], "int64")
    batch = {"input_ids": ids, "attention_mask": paddle.ones_like(ids)}
    pixels = paddle.zeros([2, 3, 384, 384])
    with paddle.no_grad():
        vision = allocated(lambda: model.encode_views(pixels))
    whole, chunked = (allocated(lambda c=chunk: model.prefill(batch, 513, c)) for chunk in (None, 64))
    language = config.language_config
    # The laid out weights of MLA are made by the first decode step.
    cached = 2 * 4 * 513 * (64 + 32 if use_mla else 2 * 256)
    given = pixels.size * 4  # the estimate has the pixels twice; here they were there before
    assert vision == pytest.approx(memory.vision_bytes(config, FLOAT32, 2 * 196, 1) - given, rel=0.15)
    for measured, chunk in ((whole, None), (chunked, 64)):
        expected = memory.prefill_bytes(language, FLOAT32, 512, 1, chunk) + cached
        assert measured == pytest.approx(expected, rel=0.15), chunk


def allocated(compute) -> int:
    """Bytes of tensors that existed at once during a computation, on top of those before."""
    core = paddle.base.core
    core.host_memory_stat_reset_peak_value("Allocated", 0)
    before = core.host_memory_stat_current_value("Allocated", 0)
    compute()
    return core.host_memory_stat_peak_value("Allocated", 0) - before


@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("case", ["mha_greedy", "mla_noaux_tc"])
def test_a_model_on_the_kernels(case, weights, native, golden):
    model = DeepseekVLV2ForCausalLM.from_pretrained(golden / case, weights, "cpu_kernels", progress=False)
    held = [one for layer in model.sublayers() if type(layer) in KERNEL_LAYERS for one in holdings(layer)]
    matrices = [one for one in held if isinstance(one, ops.PackedMatrix)]
    tensors = [one for one in held if isinstance(one, paddle.Tensor)]
    packed = [array for matrix in matrices for array in (matrix.data, matrix.scales) if array is not None]
    found = {id(tensor): tensor for tensor in [*tensors, *model.parameters()]}.values()
    config = DeepseekVLV2Config.from_json(golden / case)
    expected = memory.weight_bytes(config, kernel_execution(weights))
    num_bytes = sum(tensor.size * tensor.element_size() for tensor in found)
    assert num_bytes + sum(array.nbytes for array in packed) == expected


KERNEL_LAYERS = tuple(layers.REPLACEMENTS.values())


def holdings(layer):
    """Packed weights and vectors of a layer on the kernels, itself and not those of its sublayers."""
    for held in (*vars(layer).values(), *layer.buffers(include_sublayers=False)):
        if isinstance(held, ops.PackedExperts | ops.PackedVisionBlock):
            yield from (*held.matrices, *getattr(held, "vectors", ()))
        elif isinstance(held, ops.PackedMatrix | paddle.Tensor):
            yield held


def test_the_same_numbers_stand_where_they_are_used(monkeypatch):
    for name, gpu in (("cpu", False), ("gpu", True)):
        monkeypatch.setattr(device, "is_gpu", lambda gpu=gpu: gpu)
        for patches in (729, 36, 100_000):
            assert device.tiles_per_pass(patches) == max(1, memory.PATCHES_PER_PASS[name] // patches)
    assert memory.PATCHES_PER_PASS == {"cpu": 2 * 729, "gpu": 16 * 729}
    assert (memory.QUERY_BLOCK, memory.LARGE_TABLE, memory.FEW_ROWS) == (256, 1 << 22, 4)
    assert (memory.BLOCK_ROWS, memory.BLOCK_COLUMNS) == (32, 64)
    source = (build.SOURCES / "linear.cpp").read_text()
    assert re.search(rf"kFewRows = {memory.FEW_ROWS}\b", source)
    for size, dtype in ((memory.LARGE_TABLE, "bfloat16"), (memory.LARGE_TABLE - 1, "float32")):
        table = paddle.zeros([size], "bfloat16")
        _widen(table)
        assert str(table.dtype) == f"paddle.{dtype}"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"positions": 0}, "positions is 0; it must be at least 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"positions": 4097}, "4097 positions, but the model has 4096"),
    ],
)
def test_sizes_that_cannot_be(sizes, message):
    with pytest.raises(ValueError, match=message):
        estimate(published("tiny"), FLOAT32, **sizes)
