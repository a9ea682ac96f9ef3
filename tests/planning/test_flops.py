"""Costs against sums written out by hand for the published models (hidden sizes of their config.json)."""

from pathlib import Path

import pytest

from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.planning import flops as costs

CONFIGS = Path(__file__).parents[2] / "configs" / "model"


@pytest.fixture(scope="module")
def tiny():
    return DeepseekVLV2Config.from_json(CONFIGS / "tiny.json")


def test_vision_of_tiny(tiny):
    # 729 patches of width 1152, 27 layers, MLP 4304; 196 image tokens, 4608 -> 1280 -> 1280.
    layer = 729 * (4 * 1152**2 + 2 * 1152 * 4304) + 2 * 729**2 * 1152
    tile = 729 * 588 * 1152 + 27 * layer + 196 * (4608 * 1280 + 1280 * 1280)
    assert costs.vision_flops(tiny, tiles=5) == 2 * 5 * tile


def test_prefill_and_decode_of_tiny(tiny):
    # One dense layer and eleven with 6 + 2 experts of width 896, a router of 64; 10 heads of 128.
    weights = 12 * 4 * 1280**2 + 3 * 1280 * 6848 + 11 * (8 * 3 * 1280 * 896 + 64 * 1280)
    head = 129280 * 1280
    language = tiny.language_config
    assert costs.layer_weights_per_token(language) == weights
    pairs = 100 * 101 // 2
    assert costs.prefill_flops(language, 100) == 2 * (100 * weights + 12 * 10 * 256 * pairs + head)
    assert costs.decode_bytes(language, 100, 4) == 4 * (weights + head + 12 * 2 * 1280 * 100)


def test_latent_attention_of_small():
    language = DeepseekVLV2Config.from_json(CONFIGS / "small.json").language_config
    attention = 2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048
    moe = 8 * 3 * 2048 * 1408 + 64 * 2048
    assert costs.layer_weights_per_token(language) == 27 * attention + 3 * 2048 * 10944 + 26 * moe
    # The cache holds 512 + 64 values per position and layer.
    grown = costs.decode_bytes(language, 11, 2) - costs.decode_bytes(language, 10, 2)
    assert grown == 2 * 27 * 576


def test_a_training_row_predicts_every_token(tiny):
    language = tiny.language_config
    row = costs.training_row_flops(tiny, tokens=100, tiles=3)
    assert row["vision"] == costs.vision_flops(tiny, 3)
    # A prompt has the logits of one position, a row those of all.
    assert row["language"] - costs.prefill_flops(language, 100) == 99 * 2 * 129280 * 1280


def test_what_tokens_take_to_their_experts(tiny):
    # Eleven MoE layers, six experts per token, width 1280.
    assert (
        costs.dispatched_bytes(tiny.language_config, tokens=10, bytes_per_value=2) == 11 * 10 * 6 * 1280 * 2
    )
