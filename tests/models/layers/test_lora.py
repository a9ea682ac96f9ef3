"""A linear layer with an adapter, by hand."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlemix_vl2.models.layers.lora import LoRALinear


@pytest.fixture
def layer():
    paddle.seed(0)
    layer = LoRALinear(nn.Linear(6, 4), r=2, scaling=1.5)
    layer.lora_B.set_value(paddle.randn([2, 4]))
    return layer


def test_its_output(layer):
    x = paddle.randn([2, 3, 6])
    weight, bias, a, b = (p.numpy() for p in (layer.weight, layer.bias, layer.lora_A, layer.lora_B))
    expected = x.numpy() @ (weight + 1.5 * a @ b) + bias
    assert np.allclose(layer(x).numpy(), expected, atol=1e-5)


def test_it_takes_over_the_parameters_and_freezes_the_weight():
    plain = nn.Linear(6, 4, bias_attr=False)
    layer = LoRALinear(plain, r=2, scaling=1.0)
    assert layer.weight is plain.weight and layer.bias is None
    x = paddle.randn([3, 6])
    assert np.array_equal(layer(x).numpy(), plain(x).numpy()), "B = 0: nothing is added yet"
    layer(x).sum().backward()
    assert layer.weight.grad is None and bool(layer.lora_B.grad.any())


def test_dropout_in_training_only():
    layer = LoRALinear(nn.Linear(64, 4), r=2, scaling=1.0, dropout=0.5)
    layer.lora_B.set_value(paddle.randn([2, 4]))
    x = paddle.randn([8, 64])
    assert (layer(x) != layer(x)).any()
    layer.eval()
    assert np.array_equal(layer(x).numpy(), layer(x).numpy())


@pytest.mark.parametrize("bias", [None, False])
def test_merged(bias):
    layer = LoRALinear(nn.Linear(6, 4, bias_attr=bias), r=2, scaling=1.5)
    layer.lora_B.set_value(paddle.randn([2, 4]))
    layer.eval()
    x = paddle.randn([3, 6])
    expected = layer(x).numpy()
    plain = layer.merged()
    assert type(plain) is nn.Linear and not plain.training
    assert [name for name, _ in plain.named_parameters()] == (
        ["weight"] if bias is False else ["weight", "bias"]
    )
    assert np.allclose(plain(x).numpy(), expected, atol=1e-5)
