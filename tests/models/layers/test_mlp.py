"""The gated MLP, and the routed experts of a process: one by one and with their weights side by side."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.layers.lora import LoRALinear
from paddlemix_vl2.models.layers.mlp import MAX_GATHERED_TOKENS, DeepseekV2MLP, Experts
from paddlemix_vl2.models.moe.layer import DeepseekV2MoE


@paddle.no_grad()
def test_the_gated_mlp_by_hand():
    mlp, x = DeepseekV2MLP(6, 10), paddle.randn([2, 3, 6])
    gate, up, down = (layer.weight.numpy() for layer in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    gated = x.numpy() @ gate
    expected = (gated / (1 + np.exp(-gated)) * (x.numpy() @ up)) @ down
    assert np.allclose(mlp(x).numpy(), expected, atol=1e-5)


@paddle.no_grad()
def test_each_slice_goes_through_its_expert(language_config):
    config = language_config(n_routed_experts=4)
    experts, rows = Experts(config, range(4)), paddle.randn([5, config.hidden_size])
    output = experts(rows, [2, 0, 3, 0])
    assert np.allclose(output[:2].numpy(), experts[0](rows[:2]).numpy(), atol=1e-6)
    assert np.allclose(output[2:].numpy(), experts[2](rows[2:]).numpy(), atol=1e-6)
    nothing = experts(rows[:0], [0, 0, 0, 0])
    assert nothing.shape == [0, config.hidden_size]


def test_some_of_the_experts_have_their_own_values_and_names(language_config):
    """Whoever holds which: random values are those of a process with all of them."""
    config = language_config(n_routed_experts=4)
    paddle.seed(1)
    whole = dict(Experts(config, range(4)).named_parameters())
    paddle.seed(1)
    part = Experts(config, range(2, 4))
    assert len(part) == 2 and [name for name, _ in part.named_children()] == ["2", "3"]
    for name, parameter in part.named_parameters():
        assert np.array_equal(parameter.numpy(), whole[name].numpy()), name


@paddle.no_grad()
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_grouped_weights_change_nothing(tokens, language_config, monkeypatch):
    """Few tokens take them, many do not; the experts keep their parameters."""
    config = language_config(n_routed_experts=8, num_experts_per_tok=3)
    moe, hidden_states = DeepseekV2MoE(config), paddle.randn([1, tokens, config.hidden_size])
    before, parameters = moe(hidden_states), [parameter.numpy() for parameter in moe.parameters()]
    moe.experts.group_weights()
    assert all((new.numpy() == old).all() for new, old in zip(moe.parameters(), parameters, strict=True))
    gathered = []
    original = moe.experts.run_grouped
    monkeypatch.setattr(moe.experts, "run_grouped", lambda *a: gathered.append(1) or original(*a))
    assert float((moe(hidden_states) - before).abs().max()) < 1e-5
    assert bool(gathered) == (tokens * 3 <= MAX_GATHERED_TOKENS)


@paddle.no_grad()
def test_grouped_weights_take_no_memory_of_their_own(language_config):
    experts = Experts(language_config(n_routed_experts=4), range(4))
    experts.group_weights()
    experts[2].up_proj.weight.set_value(paddle.full_like(experts[2].up_proj.weight, 0.5))
    ups = experts.grouped[1]
    assert bool((ups[2] == 0.5).all()) and not bool((ups[1] == 0.5).any())


def test_gradients_reach_the_experts_in_spite_of_grouped_weights(language_config):
    config = language_config(n_routed_experts=4)
    moe = DeepseekV2MoE(config)
    moe.experts.group_weights()
    moe(paddle.randn([1, 2, config.hidden_size])).sum().backward()
    assert any(expert.down_proj.weight.grad is not None for expert in moe.experts)


class Twice(paddle.nn.Layer):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


def adapter(inner):
    adapted = LoRALinear(inner, r=2, scaling=1.0)
    adapted.lora_B.set_value(paddle.ones_like(adapted.lora_B))
    return adapted


@paddle.no_grad()
@pytest.mark.parametrize("wrap", [Twice, adapter])
@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "down_proj"])
def test_grouped_weights_are_left_where_a_layer_is_another(part, wrap, language_config):
    config = language_config(n_routed_experts=4)
    moe, hidden_states = DeepseekV2MoE(config), paddle.randn([1, 2, config.hidden_size])
    moe.experts.group_weights()
    before = moe(hidden_states)
    for expert in moe.experts:
        setattr(expert, part, wrap(getattr(expert, part)))
    assert float((moe(hidden_states) - before).abs().max()) > 1e-3


@paddle.no_grad()
def test_grouped_weights_are_left_where_the_experts_are_not_what_they_were_made_of(language_config):
    """Cast, or with other values in their place: the answer follows the experts."""
    config = language_config(n_routed_experts=4)
    moe, hidden_states = DeepseekV2MoE(config), paddle.randn([1, 2, config.hidden_size])
    moe.shared_experts = None
    moe.experts.group_weights()
    assert float(moe(hidden_states).abs().max()) > 0
    for expert in moe.experts:
        weight = expert.gate_proj.weight
        paddle.zeros_like(weight)._share_buffer_to(weight)
    assert not moe.experts.takes_grouped(2)
    assert float(moe(hidden_states).abs().max()) == 0
