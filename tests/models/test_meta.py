"""Specs of a model that is never built: the published tensors, written out here apart from the layers."""

from math import prod
from pathlib import Path
from types import SimpleNamespace

import paddle
import pytest

from paddlemix_vl2.checkpoints import parameter_specs
from paddlemix_vl2.checkpoints.specs import TensorLayout
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.models.meta import language_specs, linear_paths, model_specs

TESTS = Path(__file__).parents[1]
CONFIGS = TESTS.parent / "configs" / "model"
CASES = sorted(file.parent.name for file in TESTS.glob("golden/*/config.json"))

# Published: tensors and parameters of each checkpoint. Those of base count e_score_correction_bias, 72 in
# each of its 29 MoE layers.
PUBLISHED = {
    "tiny": (2_582, 3_370_501_440),
    "small": (5_639, 16_148_349_504),
    "base": (6_973, 27_480_134_248),
}
# Layers, hidden size, vocabulary, heads, width of the dense layer, routed experts, width of one.
GEOMETRIES = {
    "tiny": (12, 1280, 129_280, 10, 6848, 64, 896),
    "small": (27, 2048, 102_400, 16, 10_944, 64, 1408),
    "base": (30, 2560, 129_280, 32, 12_288, 72, 1536),
}


def linear(name: str, size_out: int, size_in: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size_out, size_in), f"{name}.bias": (size_out,)}


def norm(name: str) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (1152,), f"{name}.bias": (1152,)}


def gated_mlp(name: str, hidden: int, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.gate_proj.weight": (width, hidden),
        f"{name}.up_proj.weight": (width, hidden),
        f"{name}.down_proj.weight": (hidden, width),
    }


def published_vision() -> dict[str, tuple[int, ...]]:
    """SigLIP So400m, the same in all three; its pooling head is in the files and used by no forward pass."""
    tensors = {
        "vision.patch_embed.proj.weight": (1152, 3, 14, 14),
        "vision.patch_embed.proj.bias": (1152,),
        "vision.pos_embed": (1, 729, 1152),
        **norm("vision.norm"),
        "vision.attn_pool.latent": (1, 1, 1152),
        **linear("vision.attn_pool.q", 1152, 1152),
        **linear("vision.attn_pool.kv", 2304, 1152),
        **linear("vision.attn_pool.proj", 1152, 1152),
        **norm("vision.attn_pool.norm"),
        **linear("vision.attn_pool.mlp.fc1", 4304, 1152),
        **linear("vision.attn_pool.mlp.fc2", 1152, 4304),
    }
    for block in (f"vision.blocks.{index}" for index in range(27)):
        tensors |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        tensors |= linear(f"{block}.attn.qkv", 3456, 1152) | linear(f"{block}.attn.proj", 1152, 1152)
        tensors |= linear(f"{block}.mlp.fc1", 4304, 1152) | linear(f"{block}.mlp.fc2", 1152, 4304)
    return tensors


def published_attention(name: str, hidden: int, heads: int, latent: bool) -> dict[str, tuple[int, ...]]:
    if not latent:
        return {f"{name}.{projection}_proj.weight": (hidden, hidden) for projection in "qkvo"}
    return {
        f"{name}.q_proj.weight": (heads * 192, hidden),
        f"{name}.kv_a_proj_with_mqa.weight": (576, hidden),
        f"{name}.kv_a_layernorm.weight": (512,),
        f"{name}.kv_b_proj.weight": (heads * 256, 512),
        f"{name}.o_proj.weight": (hidden, heads * 128),
    }


def published_tensors(model: str) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor of a published checkpoint."""
    layers, hidden, vocabulary, heads, dense, experts, width = GEOMETRIES[model]
    tensors = published_vision()
    tensors |= linear("projector.layers.0", hidden, 4608) | linear("projector.layers.2", hidden, hidden)
    tensors |= {"image_newline": (hidden,), "view_seperator": (hidden,)}
    tensors["language.model.embed_tokens.weight"] = (vocabulary, hidden)
    tensors["language.lm_head.weight"] = (vocabulary, hidden)
    tensors["language.model.norm.weight"] = (hidden,)
    for index in range(layers):
        layer = f"language.model.layers.{index}"
        tensors[f"{layer}.input_layernorm.weight"] = (hidden,)
        tensors[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
        tensors |= published_attention(f"{layer}.self_attn", hidden, heads, latent=model != "tiny")
        if index == 0:
            tensors |= gated_mlp(f"{layer}.mlp", hidden, dense)
            continue
        tensors[f"{layer}.mlp.gate.weight"] = (experts, hidden)
        if model == "base":
            tensors[f"{layer}.mlp.gate.e_score_correction_bias"] = (experts,)
        tensors |= gated_mlp(f"{layer}.mlp.shared_experts", hidden, 2 * width)
        for expert in range(experts):
            tensors |= gated_mlp(f"{layer}.mlp.experts.{expert}", hidden, width)
    return tensors


def specs_of(model: str) -> dict:
    return model_specs(DeepseekVLV2Config.from_json(CONFIGS / f"{model}.json"))


@pytest.mark.parametrize("model", PUBLISHED)
def test_counts_of_published_models(model):
    specs = specs_of(model)
    assert (len(specs), sum(spec.size for spec in specs.values())) == PUBLISHED[model]


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_names_and_shapes(model):
    tensors = published_tensors(model)
    assert (len(tensors), sum(map(prod, tensors.values()))) == PUBLISHED[model], "the table of this test"
    assert {name: spec.shape for name, spec in specs_of(model).items()} == tensors


@pytest.mark.parametrize("model", PUBLISHED)
def test_transposed_are_the_matrices_but_two(model):
    for name, spec in specs_of(model).items():
        matrix = len(spec.shape) == 2 and not name.endswith(("embed_tokens.weight", "mlp.gate.weight"))
        assert spec.linear == matrix, name
        assert spec.shape_in(TensorLayout.PADDLE) == (spec.shape[::-1] if matrix else spec.shape), name


@pytest.mark.parametrize(("model", "gates", "biases"), [("tiny", 11, 0), ("small", 26, 0), ("base", 29, 29)])
def test_oddities_of_published_models(model, gates, biases):
    """The router, which Paddle's files hold either way round, and its correction bias, float32 always."""
    specs = specs_of(model)
    either_way = [name for name, spec in specs.items() if spec.either_way]
    assert len(either_way) == gates and all(name.endswith(".mlp.gate.weight") for name in either_way)
    own_dtype = {name: spec for name, spec in specs.items() if spec.dtype}
    assert all(name.endswith(".mlp.gate.e_score_correction_bias") for name in own_dtype)
    assert [(spec.shape, spec.dtype) for spec in own_dtype.values()] == [((72,), "float32")] * biases


def small_config(**language) -> DeepseekVLV2Config:
    """A small model with these language settings; two layers, the second with four experts."""
    settings = {
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 24,
        "moe_intermediate_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_shared_experts": 3,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": None,
        "kv_lora_rank": 6,
        "qk_nope_head_dim": 5,
        "qk_rope_head_dim": 2,
        "v_head_dim": 3,
    }
    vision = {"width": 8, "layers": 1, "heads": 2}
    projector = {"input_dim": 8, "n_embed": 16}
    return DeepseekVLV2Config(
        vision_config=vision, projector_config=projector, language_config={**settings, **language}
    )


def names_of(**language) -> dict[str, tuple[int, ...]]:
    return {name: spec.shape for name, spec in model_specs(small_config(**language)).items()}


def test_latent_attention_shapes():
    tensors = names_of()
    attention = "language.model.layers.0.self_attn."
    assert tensors[attention + "q_proj.weight"] == (4 * (5 + 2), 16)
    assert tensors[attention + "kv_a_proj_with_mqa.weight"] == (6 + 2, 16)
    assert tensors[attention + "kv_b_proj.weight"] == (4 * (5 + 3), 6)
    assert tensors[attention + "o_proj.weight"] == (16, 4 * 3)


def test_low_rank_queries_replace_q_proj():
    added = names_of(q_lora_rank=7).keys() - names_of().keys()
    attention = "language.model.layers.1.self_attn."
    assert {name for name in added if name.startswith(attention)} == {
        attention + "q_a_proj.weight",
        attention + "q_a_layernorm.weight",
        attention + "q_b_proj.weight",
    }
    assert names_of(q_lora_rank=7)[attention + "q_b_proj.weight"] == (28, 7)


@pytest.mark.parametrize(
    ("settings", "projections"),
    [
        ({}, ["kv_a_proj_with_mqa", "o_proj"]),
        ({"q_lora_rank": 7}, ["kv_a_proj_with_mqa", "o_proj", "q_a_proj"]),
        ({"use_mla": False}, ["k_proj", "o_proj", "q_proj", "v_proj"]),
    ],
)
def test_attention_bias(settings, projections):
    added = names_of(attention_bias=True, **settings).keys() - names_of(**settings).keys()
    assert sorted(added) == [
        f"language.model.layers.{layer}.self_attn.{name}.bias" for layer in (0, 1) for name in projections
    ]


def test_dense_and_moe_layers():
    tensors = names_of(num_hidden_layers=5, first_k_dense_replace=2, moe_layer_freq=2)
    with_experts = {int(name.split(".")[3]) for name in tensors if name.endswith("mlp.gate.weight")}
    assert with_experts == {2, 4}
    assert tensors["language.model.layers.3.mlp.gate_proj.weight"] == (24, 16)
    assert tensors["language.model.layers.4.mlp.experts.3.down_proj.weight"] == (16, 8)
    assert tensors["language.model.layers.4.mlp.shared_experts.up_proj.weight"] == (3 * 8, 16)


def test_without_shared_or_any_experts():
    assert not [name for name in names_of(n_shared_experts=None) if "shared_experts" in name]
    assert not [name for name in names_of(n_routed_experts=None) if "expert" in name or ".gate." in name]


def test_deeper_projector():
    config = DeepseekVLV2Config(
        projector_config={"depth": 3, "mlp_ratio": 2, "n_embed": 64}, language_config={"hidden_size": 64}
    )
    projector = {k: v.shape for k, v in model_specs(config).items() if k.startswith("projector") and v.linear}
    assert projector == {
        "projector.layers.0.weight": (128, 4608),
        "projector.layers.2.weight": (128, 128),
        "projector.layers.4.weight": (64, 128),
    }


@pytest.mark.parametrize("case", CASES)
def test_specs_are_those_of_the_built_model(case):
    """Names, shapes and order; also in a process that holds some of the experts."""
    config = DeepseekVLV2Config.from_json(TESTS / "golden" / case)
    specs = model_specs(config)
    with paddle.LazyGuard():
        model = DeepseekVLV2ForCausalLM(config)
        part = DeepseekVLV2ForCausalLM(config, dispatcher=SimpleNamespace(experts=range(4, 8)))
    assert list(parameter_specs(model).items()) == list(specs.items())
    assert list(part.parameter_specs().items()) == list(specs.items())
    elsewhere = {name for name, spec in specs.items() if spec.expert in range(4)}
    assert elsewhere and parameter_specs(part).keys() == specs.keys() - elsewhere


def test_layers_that_differ_from_their_neighbours_keep_their_place():
    config = small_config(num_hidden_layers=6, first_k_dense_replace=1, moe_layer_freq=2)
    with paddle.LazyGuard():
        model = DeepseekVLV2ForCausalLM(config)
    assert list(model_specs(config).items()) == list(parameter_specs(model).items())


def test_the_config_is_left_as_it_is():
    config = small_config(num_hidden_layers=5)
    before = config.to_dict()
    model_specs(config)
    assert config.to_dict() == before


def test_a_language_model_alone():
    """VL2's names without ``language.``."""
    config = small_config(num_hidden_layers=3)
    prefix = "language."
    inside = {n.removeprefix(prefix): s.shape for n, s in model_specs(config).items() if n.startswith(prefix)}
    alone = language_specs(config.language_config)
    assert {name: spec.shape for name, spec in alone.items()} == inside
    assert all(name == spec.name for name, spec in alone.items())


def test_linear_paths():
    paths = linear_paths(model_specs(small_config(use_mla=False)))
    assert "language.model.layers.1.mlp.experts.3.up_proj" in paths and "language.lm_head" in paths
    assert not [path for path in paths if path.endswith((".gate", "embed_tokens", "norm"))]
    # Vision: 4 in the block, 5 in the pooling head; projector 2; language: head, 8 of attention, 3 of the
    # dense MLP, 3 of the shared and 12 of the routed experts.
    assert len(paths) == 4 + 5 + 2 + 1 + 8 + 3 + 3 + 12
