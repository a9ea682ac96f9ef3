"""The root-mean-square norm and its gradient in closed form, against float64."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.layers.norm import DeepseekV2RMSNorm

EPSILON = 1e-6


@pytest.fixture
def norm():
    norm = DeepseekV2RMSNorm(6, EPSILON)
    norm.weight.set_value(np.linspace(0.5, 1.5, 6, dtype=np.float32))
    return norm


@pytest.fixture
def hidden_states():
    return np.random.default_rng(0).standard_normal([2, 3, 6])


def by_hand(hidden_states, weight):
    return weight * hidden_states / np.sqrt((hidden_states**2).mean(axis=-1, keepdims=True) + EPSILON)


def test_its_output_with_and_without_a_gradient(norm, hidden_states):
    inputs = paddle.to_tensor(hidden_states, "float32")
    expected = by_hand(hidden_states, norm.weight.numpy())
    assert norm(inputs).numpy() == pytest.approx(expected, abs=1e-6)
    with paddle.no_grad():
        assert np.array_equal(norm(inputs).numpy(), norm.forward(inputs).numpy())
        assert norm(inputs).numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("frozen", [(), ("weight",), ("input",)])
def test_gradients_are_those_of_plain_operators(frozen, norm, hidden_states):
    """What is frozen gets none."""
    plain, own = (paddle.to_tensor(hidden_states, "float32") for _ in range(2))
    weight = norm.weight.clone().detach()
    for tensor in (plain, own):
        tensor.stop_gradient = "input" in frozen
    for tensor in (weight, norm.weight):
        tensor.stop_gradient = "weight" in frozen
    factors = paddle.arange(36).reshape([2, 3, 6]).astype("float32").cos()
    scale = paddle.rsqrt(plain.square().mean(axis=-1, keepdim=True) + EPSILON)
    (weight * (plain * scale) * factors).sum().backward()
    (norm(own) * factors).sum().backward()
    for ours, theirs in ((own, plain), (norm.weight, weight)):
        assert (ours.grad is None) == (theirs.grad is None) == theirs.stop_gradient
        if ours.grad is not None:
            assert ours.grad.numpy() == pytest.approx(theirs.grad.numpy(), abs=1e-5)


def test_statistics_are_float32_in_16_bits():
    """Of 4096 squares of about 1: a sum in bfloat16 stops growing at 256."""
    wide = DeepseekV2RMSNorm(4096)
    inputs = paddle.to_tensor(np.random.default_rng(1).standard_normal([1, 4096]), "float32")
    rounded = inputs.astype("bfloat16")
    expected = wide(rounded.astype("float32")).astype("bfloat16")
    wide.to(dtype="bfloat16")
    with paddle.no_grad():
        output = wide(rounded)
    assert output.dtype == paddle.bfloat16
    assert np.array_equal(output.astype("float32").numpy(), expected.astype("float32").numpy())


@pytest.mark.parametrize("grad", [False, True])
def test_it_is_float32_under_amp(grad, norm, hidden_states, assert_leaves_amp):
    inputs = paddle.to_tensor(hidden_states, "float32")
    with paddle.set_grad_enabled(grad):
        assert_leaves_amp(lambda: norm(inputs))
