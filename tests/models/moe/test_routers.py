"""Routing by hand: which experts a token gets, and with what weight."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.moe.losses import Segments, sequence_balance_loss
from paddlemix_vl2.models.moe.routers import MoEGate


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
    hidden_states = paddle.eye(config.hidden_size)[: logits.shape[0]].unsqueeze(0)
    return gate, hidden_states


def chosen(routing) -> list[dict[int, float]]:
    return [
        dict(zip(experts, weights, strict=True))
        for experts, weights in zip(routing.topk_idx.tolist(), routing.topk_weight.tolist(), strict=True)
    ]


def test_greedy_softmax(language_config):
    config = language_config(n_routed_experts=4, num_experts_per_tok=2)
    gate, hidden_states = gate_with_logits(config, [[0, 1, 2, 3], [5, 0, 0, 4]])
    probabilities = np.exp([[0, 1, 2, 3], [5, 0, 0, 4]])
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    routing = gate.route(hidden_states)
    first, second = chosen(routing)
    assert first == pytest.approx({3: probabilities[0, 3], 2: probabilities[0, 2]})
    assert second == pytest.approx({0: probabilities[1, 0], 3: probabilities[1, 3]})
    assert routing.tokens_per_expert.tolist() == [1, 0, 1, 2]
    assert routing.scores.numpy() == pytest.approx(probabilities, rel=1e-6)


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
    gate, hidden_states = gate_with_logits(config, [[0, 2, 3, -1]])
    probabilities = np.exp([0, 2, 3, -1]) / np.exp([0, 2, 3, -1]).sum()
    expected = {2: 16 * probabilities[2], 3: 16 * probabilities[3]}
    assert chosen(gate.route(hidden_states))[0] == pytest.approx(expected)


def test_noaux_tc_chooses_with_bias_and_weighs_without(language_config):
    config = language_config(
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        norm_topk_prob=True,
        routed_scaling_factor=2.0,
        n_routed_experts=4,
        num_experts_per_tok=2,
    )
    gate, hidden_states = gate_with_logits(config, [[3, 2, 1, 0]], bias=[-1, 0, 0, 1])
    scores = sigmoid([3, 2, 1, 0])  # with the bias: -0.05, 0.88, 0.73, 1.5
    total = scores[1] + scores[3]
    expected = {3: 2 * scores[3] / total, 1: 2 * scores[1] / total}
    assert chosen(gate.route(hidden_states))[0] == pytest.approx(expected)


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
    gate, hidden_states = gate_with_logits(config, [[4, -4, 2, 2]], bias=[0, 0, 0, 0])
    assert set(chosen(gate.route(hidden_states))[0]) == {2, 3}
    gate, hidden_states = gate_with_logits(config, [[0, 0, 0, 0]], bias=[-1.0, -1.1, -2, -2])
    assert set(chosen(gate.route(hidden_states))[0]) == {0, 1}


def test_all_tokens_to_the_same_experts(language_config):
    config = language_config(n_routed_experts=6, num_experts_per_tok=2)
    gate, hidden_states = gate_with_logits(config, [[9, 0, 0, 0, 8, 0]] * 5)
    assert gate.route(hidden_states).tokens_per_expert.tolist() == [5, 0, 0, 0, 5, 0]


def test_a_call_gives_experts_weights_and_balance_loss(language_config):
    """As the published class: the loss in training only, every row a sequence."""
    config = language_config(aux_loss_alpha=0.5, seq_aux=True)
    gate, hidden_states = MoEGate(config), paddle.randn([2, 6, config.hidden_size])
    routing = gate.route(hidden_states)
    topk_idx, topk_weight, aux_loss = gate(hidden_states)
    assert np.array_equal(topk_idx.numpy(), routing.topk_idx.numpy())
    assert np.array_equal(topk_weight.numpy(), routing.topk_weight.numpy())
    expected = 0.5 * sequence_balance_loss(routing.scores, routing.topk_idx, Segments.of_rows(2, 6))
    assert float(aux_loss) == pytest.approx(float(expected))
    aux_loss.backward()
    assert float(gate.weight.grad.abs().sum()) > 0
    gate.eval()
    assert gate(hidden_states)[2] is None
    without = MoEGate(language_config(aux_loss_alpha=0.0))
    assert without(hidden_states)[2] is None


def test_the_correction_bias_stays_float32_through_casts(language_config):
    gate = MoEGate(language_config(topk_method="noaux_tc", scoring_func="sigmoid"))
    bias = np.linspace(0.9, 1.0, 8, dtype=np.float32) + np.float32(1e-4)
    gate.e_score_correction_bias.set_value(bias)
    paddle.nn.Sequential(gate).to(dtype="bfloat16")
    assert gate.weight.dtype == paddle.bfloat16
    assert gate.e_score_correction_bias.dtype == paddle.float32
    assert np.array_equal(gate.e_score_correction_bias.numpy(), bias)


def test_the_bias_moves_towards_even_loads(language_config):
    """By the speed whatever the distance; an expert at the mean stays."""
    config = language_config(topk_method="noaux_tc", scoring_func="sigmoid", n_routed_experts=4)
    gate = MoEGate(config)
    gate.move_bias(paddle.to_tensor([9.0, 4.0, 3.0, 0.0]), speed=0.001)
    assert gate.e_score_correction_bias.numpy() == pytest.approx([-0.001, 0, 0.001, 0.001])


def test_the_router_is_float32_under_amp(language_config, assert_leaves_amp):
    gate = MoEGate(language_config())
    hidden_states = paddle.randn([1, 2, gate.config.hidden_size])
    assert_leaves_amp(lambda: gate.route(hidden_states).scores)
