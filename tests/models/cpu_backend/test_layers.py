"""Layers on the kernels by themselves, against those that they are made from."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlemix_vl2.models.cpu_backend import WeightPacker
from paddlemix_vl2.models.cpu_backend.layers import KernelLayerNorm, KernelMoE
from paddlemix_vl2.models.moe.layer import DeepseekV2MoE


@paddle.no_grad()
@pytest.mark.parametrize("shared", [None, 2])
def test_an_moe_layer_with_and_without_shared_experts(shared, native, language_config):
    paddle.seed(0)
    plain = DeepseekV2MoE(language_config(n_shared_experts=shared))
    plain.eval()
    hidden_states = paddle.randn([2, 5, plain.config.hidden_size])
    expected, routing = plain.run(hidden_states)
    layer = KernelMoE(plain, WeightPacker(plain, "bfloat16"))
    output, same = layer.run(hidden_states)
    assert np.array_equal(same.topk_idx.numpy(), routing.topk_idx.numpy())
    # Weights and activations of eight bits.
    assert float((output - expected).abs().max()) < 0.05 * float(expected.abs().max())
    assert np.array_equal(layer(hidden_states).numpy(), output.numpy())


def test_a_norm_without_weights_is_refused():
    with pytest.raises(ValueError, match=r"need weight and bias; use backend='paddle'"):
        KernelLayerNorm(nn.LayerNorm(4, weight_attr=False), WeightPacker(nn.Layer(), "bfloat16"))
