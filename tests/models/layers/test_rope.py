"""Rotary embedding against numpy in float64, and out of reach of casts."""

import math

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.decoder import DeepseekV2Model
from paddlemix_vl2.models.layers.rope import RotaryEmbedding, rotate

DIM = 8
YARN = {
    "type": "yarn",
    "factor": 40,
    "original_max_position_embeddings": 64,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 1.0,
    "mscale_all_dim": 0.5,
}


def frequencies(theta=10000.0):
    return theta ** -(np.arange(0, DIM, 2) / DIM)


def lookup(rotary, positions, total_length=None):
    positions = paddle.to_tensor([positions])
    cos, sin = rotary.lookup(positions, total_length or int(positions.max()) + 1, num_heads=2)
    assert list(cos.shape) == [1, positions.shape[1], 2, DIM // 2]
    assert np.array_equal(cos[:, :, 0].numpy(), cos[:, :, 1].numpy())
    assert cos.dtype == sin.dtype == paddle.float32
    return cos[0, :, 0].numpy(), sin[0, :, 0].numpy()


def test_plain(language_config):
    cos, sin = lookup(RotaryEmbedding(DIM, language_config()), [0, 1, 4095])
    angles = np.outer([0, 1, 4095], frequencies())
    # Angles reach 4095 rad, where float32 resolves 2.4e-4.
    assert np.allclose(cos, np.cos(angles), atol=5e-4)
    assert np.allclose(sin, np.sin(angles), atol=5e-4)
    assert np.allclose(cos[:2], np.cos(angles[:2]), atol=1e-6)


def test_linear_divides_positions(language_config):
    config = language_config(rope_scaling={"type": "linear", "factor": 4.0})
    cos, _ = lookup(RotaryEmbedding(DIM, config), [8])
    assert np.allclose(cos[0], np.cos(2 * frequencies()), atol=1e-6)
    assert config.max_sequence_length == 4 * config.max_position_embeddings


def test_dynamic_raises_the_base_only_past_the_trained_length(language_config):
    config = language_config(rope_scaling={"type": "dynamic", "factor": 2.0}, max_position_embeddings=16)
    rotary = RotaryEmbedding(DIM, config)
    within, _ = lookup(rotary, [5], total_length=16)
    assert np.allclose(within[0], np.cos(5 * frequencies()), atol=1e-6)
    past, _ = lookup(rotary, [5], total_length=24)
    grown = 10000.0 * (2.0 * 24 / 16 - 1) ** (DIM / (DIM - 2))
    assert np.allclose(past[0], np.cos(5 * frequencies(grown)), atol=1e-6)
    again, _ = lookup(rotary, [5], total_length=16)
    assert np.array_equal(again, within)


def test_yarn_by_hand(language_config):
    rotary = RotaryEmbedding(DIM, language_config(rope_scaling=YARN))

    # Dimensions below `low` keep their frequency, above `high` they are divided by 40, linear in between.
    def dimension(turns):
        return DIM * math.log(64 / (turns * 2 * math.pi)) / (2 * math.log(10000.0))

    low, high = max(math.floor(dimension(32)), 0), min(math.ceil(dimension(1)), DIM - 1)
    assert (low, high) == (0, 2)
    stretched = np.array([0.0, 0.5, 1.0, 1.0])
    angles = 3 * (frequencies() * (1 - stretched) + frequencies() / 40 * stretched)
    magnitude = (0.1 * math.log(40) + 1) / (0.05 * math.log(40) + 1)
    cos, sin = lookup(rotary, [3])
    assert np.allclose(cos[0], np.cos(angles) * magnitude, atol=1e-6)
    assert np.allclose(sin[0], np.sin(angles) * magnitude, atol=1e-6)
    assert rotary.softmax_factor() == pytest.approx((0.05 * math.log(40) + 1) ** 2)


@pytest.mark.parametrize("interleaved", [True, False])
def test_rotation_is_complex_multiplication(interleaved, language_config):
    x = np.random.default_rng(0).standard_normal(DIM)
    rotary = RotaryEmbedding(DIM, language_config())
    turned = rotate(
        paddle.to_tensor(x.reshape(1, 1, 1, DIM), "float32"),
        rotary.lookup(paddle.to_tensor([[11]]), 12, num_heads=1),
        interleaved,
    )
    pairs = x[0::2] + 1j * x[1::2] if interleaved else x[: DIM // 2] + 1j * x[DIM // 2 :]
    expected = pairs * np.exp(1j * 11 * frequencies())
    assert np.allclose(turned.numpy().ravel(), np.concatenate([expected.real, expected.imag]), atol=1e-5)


def test_positions_above_2000_survive_every_cast(language_config):
    """A bfloat16 table has a few hundred distinct rows; every cast must leave the float32 one as it was."""
    config = language_config(num_hidden_layers=1)
    model = DeepseekV2Model(config)
    positions = list(range(2000, 3000))
    before = lookup(model.rotary, positions)
    model.to(dtype="bfloat16")
    assert model.embed_tokens.weight.dtype == paddle.bfloat16
    assert all(np.array_equal(a, b) for a, b in zip(before, lookup(model.rotary, positions), strict=True))
    paddle.amp.decorate(DeepseekV2Model(config), level="O2", dtype="bfloat16")
    decorated = paddle.amp.decorate(model.to(dtype="float32"), level="O2", dtype="bfloat16")
    after = lookup(decorated.rotary, positions)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert len(np.unique(after[0][:, 0])) > 900, "neighbouring positions must stay distinct"


@pytest.mark.parametrize("interleaved", [True, False])
def test_the_rotation_is_float32_under_amp(interleaved, language_config, assert_leaves_amp):
    rotary = RotaryEmbedding(DIM, language_config()).lookup(paddle.to_tensor([[0, 1]]), 2, num_heads=1)
    x = paddle.randn([1, 2, 1, DIM])
    assert_leaves_amp(lambda: rotate(x, rotary, interleaved))
