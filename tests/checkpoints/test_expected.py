"""Tensor lists derived from a config equal the published counts and the golden files."""

import math
from pathlib import Path

import pytest

from paddlemix_vl2.checkpoints import expected_tensors
from paddlemix_vl2.configuration import DeepseekVLV2Config

CONFIGS = Path(__file__).parents[2] / "configs" / "model"

# Published: tensors and parameters of each checkpoint. Those of base count e_score_correction_bias, 72 in
# each of its 29 mixture layers.
PUBLISHED = {
    "tiny": (2_582, 3_370_501_440),
    "small": (5_639, 16_148_349_504),
    "base": (6_973, 27_480_134_248),
}


def names_of(**language) -> dict[str, tuple[int, ...]]:
    """Tensors of a small model with these language settings; two layers, the second with four experts."""
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
    config = DeepseekVLV2Config(
        vision_config=vision, projector_config=projector, language_config={**settings, **language}
    )
    return expected_tensors(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_of_published_models(name):
    tensors = expected_tensors(DeepseekVLV2Config.from_json(CONFIGS / f"{name}.json"))
    assert (len(tensors), sum(map(math.prod, tensors.values()))) == PUBLISHED[name]


def test_correction_bias_only_in_base():
    for name, count in {"tiny": 0, "small": 0, "base": 29}.items():
        tensors = expected_tensors(DeepseekVLV2Config.from_json(CONFIGS / f"{name}.json"))
        biases = [shape for key, shape in tensors.items() if key.endswith("e_score_correction_bias")]
        assert biases == [(72,)] * count


def test_golden_names_and_shapes(case):
    assert expected_tensors(case.config) == {name: array.shape for name, array in case.weights.items()}


def test_published_vision_shapes():
    tensors = expected_tensors(DeepseekVLV2Config.from_json(CONFIGS / "tiny.json"))
    assert tensors["vision.patch_embed.proj.weight"] == (1152, 3, 14, 14)
    assert tensors["vision.pos_embed"] == (1, 729, 1152)
    assert tensors["vision.blocks.26.mlp.fc1.weight"] == (4304, 1152)
    assert tensors["vision.attn_pool.latent"] == (1, 1, 1152)
    assert tensors["vision.attn_pool.kv.weight"] == (2304, 1152)
    assert len([name for name in tensors if name.startswith("vision.attn_pool.")]) == 13
    assert tensors["projector.layers.0.weight"] == (1280, 4608)


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


def test_dense_and_mixture_layers():
    tensors = names_of(num_hidden_layers=5, first_k_dense_replace=2, moe_layer_freq=2)
    mixtures = {int(name.split(".")[3]) for name in tensors if name.endswith("mlp.gate.weight")}
    assert mixtures == {2, 4}
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
    weights = {k: v for k, v in expected_tensors(config).items() if k.startswith("projector") and len(v) == 2}
    assert weights == {
        "projector.layers.0.weight": (128, 4608),
        "projector.layers.2.weight": (128, 128),
        "projector.layers.4.weight": (64, 128),
    }
