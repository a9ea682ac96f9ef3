"""Routing by hand, and the sorted path against a loop over tokens."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.moe import MOST_GATHERED, DeepseekV2MoE, MoEGate, stack_experts


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, float)))


def gate_with_logits(config, logits, bias=None):
    """A gate whose logits for the unit vectors of the hidden space are the given rows [tokens, experts]."""
    logits = np.asarray(logits, np.float32)
    weight = np.zeros([logits.shape[1], config.hidden_size], np.float32)
    weight[:, : logits.shape[0]] = logits.T
    gate = MoEGate(config)
    gate.weight.set_value(weight)
    if bias is not None:
        gate.e_score_correction_bias.set_value(np.asarray(bias, np.float32))
    hidden = paddle.eye(config.hidden_size)[: logits.shape[0]].unsqueeze(0)
    return gate, hidden


def chosen(routing) -> list[dict[int, float]]:
    return [
        dict(zip(experts, weights, strict=True))
        for experts, weights in zip(routing.experts.tolist(), routing.weights.tolist(), strict=True)
    ]


def test_greedy_softmax(language_config):
    config = language_config(n_routed_experts=4, num_experts_per_tok=2)
    gate, hidden = gate_with_logits(config, [[0, 1, 2, 3], [5, 0, 0, 4]])
    probabilities = np.exp([[0, 1, 2, 3], [5, 0, 0, 4]])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    routing = gate(hidden)
    first, second = chosen(routing)
    assert first == pytest.approx({3: probabilities[0, 3], 2: probabilities[0, 2]})
    assert second == pytest.approx({0: probabilities[1, 0], 3: probabilities[1, 3]})
    assert routing.load.tolist() == [1, 0, 1, 2]


def test_group_limited_greedy(language_config):
    """The best group by its best expert is {2, 3}; expert 1, second best of all, is out of reach."""
    config = language_config(
        topk_method="group_limited_greedy",
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        routed_scaling_factor=16.0,
    )
    gate, hidden = gate_with_logits(config, [[0, 2, 3, -1]])
    probabilities = np.exp([0, 2, 3, -1]) / np.exp([0, 2, 3, -1]).sum()
    assert chosen(gate(hidden))[0] == pytest.approx({2: 16 * probabilities[2], 3: 16 * probabilities[3]})


def test_noaux_tc_chooses_with_bias_and_weighs_without(language_config):
    config = language_config(
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        norm_topk_prob=True,
        routed_scaling_factor=2.0,
        n_routed_experts=4,
        num_experts_per_tok=2,
    )
    gate, hidden = gate_with_logits(config, [[3, 2, 1, 0]], bias=[-1, 0, 0, 1])
    scores = sigmoid([3, 2, 1, 0])  # with the bias: -0.05, 0.88, 0.73, 1.5
    total = scores[1] + scores[3]
    assert chosen(gate(hidden))[0] == pytest.approx({3: 2 * scores[3] / total, 1: 2 * scores[1] / total})


def test_noaux_tc_groups_count_their_two_best(language_config):
    """Group {0, 1} has the best expert, group {2, 3} the best pair; a negative biased score inside the kept
    group still beats every expert outside it."""
    config = language_config(
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        norm_topk_prob=False,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
    )
    gate, hidden = gate_with_logits(config, [[4, -4, 2, 2]], bias=[0, 0, 0, 0])
    assert set(chosen(gate(hidden))[0]) == {2, 3}
    gate, hidden = gate_with_logits(config, [[0, 0, 0, 0]], bias=[-1.0, -1.1, -2, -2])
    assert set(chosen(gate(hidden))[0]) == {0, 1}


METHODS = {
    "greedy": {},
    "group_limited_greedy": {"n_group": 4, "topk_group": 2},
    "noaux_tc": {"scoring_func": "sigmoid", "norm_topk_prob": True, "n_group": 4, "topk_group": 2},
}


@pytest.mark.parametrize("method", METHODS)
def test_sorted_path_equals_loop_over_tokens(method, language_config):
    config = language_config(topk_method=method, **METHODS[method])
    moe = DeepseekV2MoE(config)
    moe.eval()
    hidden = paddle.randn([2, 5, config.hidden_size])
    output, routing = moe(hidden)
    for token, (row, choice) in enumerate(zip(hidden.flatten(stop_axis=1), chosen(routing), strict=True)):
        expected = moe.shared_experts(row) + sum(w * moe.experts[e](row) for e, w in choice.items())
        assert float((output.flatten(stop_axis=1)[token] - expected).abs().max()) < 1e-5
    assert int(routing.load.sum()) == 10 * config.num_experts_per_tok


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, language_config):
    """Gradients reach router, every expert with tokens, shared experts and the input; the bias gets none."""
    config = language_config(topk_method=method, **METHODS[method])
    moe = DeepseekV2MoE(config)
    moe.train()
    hidden = paddle.randn([1, 40, config.hidden_size])
    hidden.stop_gradient = False
    output, routing = moe(hidden)
    output.square().sum().backward()
    assert float(hidden.grad.abs().sum()) > 0
    assert float(moe.gate.weight.grad.abs().sum()) > 0
    for expert, load in zip(moe.experts, routing.load.tolist(), strict=True):
        gradient = expert.down_proj.weight.grad
        assert (gradient is not None and float(gradient.abs().sum()) > 0) == (load > 0)
    if method == "noaux_tc":
        assert moe.gate.e_score_correction_bias.grad is None


def test_frozen_experts_in_eval_pass_gradients_on(language_config):
    moe = DeepseekV2MoE(language_config())
    moe.eval()
    for parameter in moe.parameters():
        parameter.stop_gradient = True
    hidden = paddle.randn([1, 6, 48])
    hidden.stop_gradient = False
    moe(hidden)[0].sum().backward()
    assert float(hidden.grad.abs().min()) > 0


def test_all_tokens_to_the_same_experts(language_config):
    config = language_config(n_routed_experts=6, num_experts_per_tok=2)
    gate, hidden = gate_with_logits(config, [[9, 0, 0, 0, 8, 0]] * 5)
    assert gate(hidden).load.tolist() == [5, 0, 0, 0, 5, 0]


def test_experts_train_behind_a_frozen_gate(language_config):
    moe = DeepseekV2MoE(language_config())
    moe.train()
    moe.gate.weight.stop_gradient = True
    output, routing = moe(paddle.randn([1, 40, 48]))
    assert routing.scores.stop_gradient
    output.sum().backward()
    assert float(moe.experts[int(routing.load.argmax())].up_proj.weight.grad.abs().sum()) > 0


def test_the_correction_bias_stays_float32_through_casts(language_config):
    moe = DeepseekV2MoE(language_config(topk_method="noaux_tc", scoring_func="sigmoid"))
    bias = np.linspace(0.9, 1.0, 8, dtype=np.float32) + np.float32(1e-4)
    moe.gate.e_score_correction_bias.set_value(bias)
    moe.to(dtype="bfloat16")
    assert moe.gate.weight.dtype == paddle.bfloat16
    assert moe.gate.e_score_correction_bias.dtype == paddle.float32
    assert np.array_equal(moe.gate.e_score_correction_bias.numpy(), bias)


@paddle.no_grad()
@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_a_stack_changes_nothing(tokens, language_config, monkeypatch):
    """Few tokens take it, many do not; the experts keep their parameters."""
    config = language_config(n_routed_experts=8, num_experts_per_tok=3)
    moe, hidden = DeepseekV2MoE(config), paddle.randn([1, tokens, config.hidden_size])
    before, parameters = moe(hidden)[0], [parameter.numpy() for parameter in moe.parameters()]
    stack_experts(moe)
    assert all((new.numpy() == old).all() for new, old in zip(moe.parameters(), parameters, strict=True))
    gathered = []
    original = moe._gather_experts
    monkeypatch.setattr(moe, "_gather_experts", lambda *a: gathered.append(1) or original(*a))
    assert float((moe(hidden)[0] - before).abs().max()) < 1e-5
    assert bool(gathered) == (tokens * 3 <= MOST_GATHERED)


@paddle.no_grad()
def test_a_stack_takes_no_memory_of_its_own(language_config):
    moe = DeepseekV2MoE(language_config(n_routed_experts=4))
    stack_experts(moe)
    moe.experts[2].up_proj.weight.set_value(paddle.full_like(moe.experts[2].up_proj.weight, 0.5))
    assert bool((moe.stacked[1][2] == 0.5).all()) and not bool((moe.stacked[1][1] == 0.5).any())


def test_gradients_reach_the_experts_in_spite_of_a_stack(language_config):
    config = language_config(n_routed_experts=4)
    moe = DeepseekV2MoE(config)
    stack_experts(moe)
    moe(paddle.randn([1, 2, config.hidden_size]))[0].sum().backward()
    assert any(expert.down_proj.weight.grad is not None for expert in moe.experts)


@paddle.no_grad()
@pytest.mark.parametrize("part", ["gate_proj", "up_proj", "down_proj"])
def test_a_stack_is_left_where_a_layer_was_wrapped(part, language_config):
    class Twice(paddle.nn.Layer):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    config = language_config(n_routed_experts=4)
    moe, hidden = DeepseekV2MoE(config), paddle.randn([1, 2, config.hidden_size])
    stack_experts(moe)
    before = moe(hidden)[0]
    for expert in moe.experts:
        setattr(expert, part, Twice(getattr(expert, part)))
    assert float((moe(hidden)[0] - before).abs().max()) > 1e-3


@paddle.no_grad()
def test_a_stack_is_left_where_the_experts_are_not_what_it_was_made_of(language_config):
    """Cast, or with other layers in their place: the answer follows the experts."""
    config = language_config(n_routed_experts=4)
    moe, hidden = DeepseekV2MoE(config), paddle.randn([1, 2, config.hidden_size])
    stack_experts(moe)
    for expert in moe.experts:
        weight = expert.gate_proj.weight
        paddle.zeros_like(weight)._share_buffer_to(weight)
    assert float(moe._run_experts(hidden[0], moe.gate(hidden)).abs().max()) == 0
    moe.shared_experts = None
    assert float(moe(hidden)[0].abs().max()) == 0
