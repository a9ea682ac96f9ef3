"""The layer against a loop over its tokens, and who gets gradients."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.moe.layer import DeepseekV2MoE
from paddlemix_vl2.models.moe.losses import BalanceLosses, Segments

METHODS = {
    "greedy": {},
    "group_limited_greedy": {"n_group": 4, "topk_group": 2},
    "noaux_tc": {"scoring_func": "sigmoid", "norm_topk_prob": True, "n_group": 4, "topk_group": 2},
}


def choices(routing):
    """For each token (expert, weight), ..."""
    return [
        list(zip(experts, weights, strict=True))
        for experts, weights in zip(routing.topk_idx.tolist(), routing.topk_weight.tolist(), strict=True)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_sorted_path_equals_loop_over_tokens(method, language_config):
    config = language_config(topk_method=method, **METHODS[method])
    moe = DeepseekV2MoE(config)
    moe.eval()
    hidden_states = paddle.randn([2, 5, config.hidden_size])
    output, routing = moe.run(hidden_states)
    assert np.array_equal(moe(hidden_states).numpy(), output.numpy())
    rows = hidden_states.flatten(stop_axis=1)
    for token, (row, choice) in enumerate(zip(rows, choices(routing), strict=True)):
        expected = moe.shared_experts(row) + sum(w * moe.experts[e](row) for e, w in choice)
        assert float((output.flatten(stop_axis=1)[token] - expected).abs().max()) < 1e-5
    assert int(routing.tokens_per_expert.sum()) == 10 * config.num_experts_per_tok


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method, language_config):
    """Gradients reach router, every expert with tokens, shared experts and the input; the bias gets none."""
    config = language_config(topk_method=method, **METHODS[method])
    moe = DeepseekV2MoE(config)
    moe.train()
    hidden_states = paddle.randn([1, 40, config.hidden_size])
    hidden_states.stop_gradient = False
    output, routing = moe.run(hidden_states)
    output.square().sum().backward()
    assert float(hidden_states.grad.abs().sum()) > 0
    assert float(moe.gate.weight.grad.abs().sum()) > 0
    for expert, count in zip(moe.experts, routing.tokens_per_expert.tolist(), strict=True):
        gradient = expert.down_proj.weight.grad
        assert (gradient is not None and float(gradient.abs().sum()) > 0) == (count > 0)
    if method == "noaux_tc":
        assert moe.gate.e_score_correction_bias.grad is None


def test_frozen_experts_in_eval_pass_gradients_on(language_config):
    moe = DeepseekV2MoE(language_config())
    moe.eval()
    for parameter in moe.parameters():
        parameter.stop_gradient = True
    hidden_states = paddle.randn([1, 6, 48])
    hidden_states.stop_gradient = False
    moe(hidden_states).sum().backward()
    assert float(hidden_states.grad.abs().min()) > 0


def test_experts_train_behind_a_frozen_gate(language_config):
    moe = DeepseekV2MoE(language_config())
    moe.train()
    moe.gate.weight.stop_gradient = True
    output, routing = moe.run(paddle.randn([1, 40, 48]))
    assert routing.scores.stop_gradient
    output.sum().backward()
    busiest = moe.experts[int(routing.tokens_per_expert.argmax())]
    assert float(busiest.up_proj.weight.grad.abs().sum()) > 0


def test_a_call_in_training_trains_on_the_balance_loss(language_config):
    """The gradient of the router is that of the output and of the config's loss; the output is the same."""
    paddle.seed(0)
    config = language_config(aux_loss_alpha=5.0)
    moe, hidden_states = DeepseekV2MoE(config), paddle.randn([2, 20, config.hidden_size])

    def gradient(loss):
        moe.clear_gradients()
        loss.backward()
        return moe.gate.weight.grad.numpy()

    output, routing = moe.run(hidden_states)
    aux_loss = BalanceLosses.of_config(config).total([routing], Segments.of_rows(2, 20))
    expected = gradient(output.sum() + aux_loss)
    published = moe(hidden_states)
    assert np.array_equal(published.numpy(), output.numpy())
    assert gradient(published.sum()) == pytest.approx(expected, abs=1e-6 * np.abs(expected).max())
    moe.eval()
    assert gradient(moe(hidden_states).sum()) != pytest.approx(expected, abs=1e-3 * np.abs(expected).max())
