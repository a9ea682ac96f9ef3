"""What balances the experts in a run: protected samples, the moving bias, and the losses of a recipe."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.models.moe.losses import BalanceLosses
from paddlemix_vl2.models.moe.statistics import RouterStatistics
from paddlemix_vl2.training.expert_balance import (
    gates,
    make_balance_losses,
    max_groups_per_token,
    protect,
    update_bias,
)
from paddlemix_vl2.training.run import make_model


def test_what_is_protected_follows_from_the_sample_index():
    """The same samples in other rows, behind padding and beside others; the share is the recipe's."""
    sample_indices, segment_ids = [(5, 6, 7), (8,)], np.array([[1, 1, 2, 3], [0, 0, 1, 1]])
    flags = {}
    for seed in range(40):
        marks = protect(sample_indices, segment_ids, share=0.5, seed=seed)
        assert marks[0, 0] == marks[0, 1] and marks[1, 2] == marks[1, 3] and not marks[1, :2].any()
        flags[seed] = marks[0, 0], marks[0, 2], marks[0, 3], marks[1, 2]
        alone = protect([(8,), (7, 6)], np.array([[1, 1], [1, 2]]), share=0.5, seed=seed)
        assert (alone[1, 1], alone[1, 0], alone[0, 0]) == flags[seed][1:]
    assert len(set(flags.values())) > 8
    many = protect([range(2000)], np.arange(1, 2001)[None], share=0.1, seed=0)
    # A share of 0.1 of 2000 has a standard deviation of 0.007.
    assert many.mean() == pytest.approx(0.1, abs=0.03)
    assert (
        not protect(sample_indices, segment_ids, 0.0, 0).any()
        and protect(sample_indices, segment_ids, 1.0, 0).sum() == 6
    )


def test_the_bias_levels_a_skewed_router(make_recipe):
    """A router that prefers two experts for every token: MaxVio falls from far above 1 to near 0."""
    arguments = make_recipe()
    model = make_model(arguments)
    gate = gates(model)[0]
    paddle.seed(7)
    hidden_states = paddle.randn([1, 512, 48])
    with paddle.no_grad():
        gate.weight.set_value(paddle.randn(gate.weight.shape) * 0.3)
        gate.weight[:2] += paddle.ones([2, 48]) * 0.5
        hidden_states = hidden_states + 0.3
    segment_ids = paddle.ones([1, 512], "int64")

    def max_vio_then_update() -> float:
        statistics = RouterStatistics()
        statistics.add((gate.route(hidden_states),) * 2, segment_ids)
        update_bias(model, statistics.tokens_per_expert, speed=0.003)
        return statistics.values()["max_vio"][0]

    course = [max_vio_then_update() for _ in range(400)]
    assert course[0] > 1.5
    assert course[-1] < 0.5


@pytest.mark.parametrize(
    ("changes", "most"),
    [
        ({"n_group": 1, "topk_group": 1, "num_experts_per_tok": 6}, 6),  # the published models: no limit
        ({"n_group": 8, "topk_group": 3, "num_experts_per_tok": 6, "topk_method": "group_limited_greedy"}, 3),
        ({"n_group": 4, "topk_group": 2, "num_experts_per_tok": 6, "topk_method": "noaux_tc"}, 4),
        ({"n_group": 8, "topk_group": 3, "num_experts_per_tok": 2, "topk_method": "noaux_tc"}, 2),
    ],
)
def test_groups_that_a_token_may_reach(changes, most):
    """Of eight groups; the second row is DeepSeek-V2, whose M is 3."""
    assert max_groups_per_token(DeepseekV2Config(**changes), num_groups=8) == most


def test_a_recipe_has_the_config_s_loss_and_its_own(make_recipe):
    """By the config's weight or the recipe's; over sequences or, with ``seq_aux`` false, added to the loss
    over experts."""
    own = {"expert_balance_alpha": 0.1, "device_balance_alpha": 0.2, "communication_balance_alpha": 0.3}
    arguments = make_recipe(expert_groups=4, **own)
    sizes = {"n_routed_experts": 8, "num_experts_per_tok": 3, "aux_loss_alpha": 0.5}
    losses = make_balance_losses(DeepseekV2Config(**sizes), arguments, sum)
    weights = {"sequence": 0.5, "expert": 0.1, "device": 0.2, "communication": 0.3}
    assert losses == BalanceLosses(weights, num_groups=4, groups_per_token=3, all_reduce=sum)
    over_batch = make_balance_losses(DeepseekV2Config(seq_aux=False, **sizes), arguments)
    assert over_batch.weights == {**weights, "sequence": 0.0, "expert": 0.6} and over_batch.all_reduce is None
    arguments.aux_loss_alpha = 0.0
    assert make_balance_losses(DeepseekV2Config(**sizes), arguments).weights["sequence"] == 0.0


def test_a_model_that_balances_over_the_batch_takes_the_counts_of_all_processes(make_recipe):
    """``seq_aux`` false: two processes with the same tokens have the loss of one; with a second process whose
    tokens went to expert 0 alone, its counts matter."""
    model = make_model(make_recipe())
    model.train()
    alpha = model.config.language_config.aux_loss_alpha
    ids = paddle.randint(3, 90, [2, 12])
    batch = {"input_ids": ids, "labels": ids, "segment_ids": paddle.ones_like(ids)}

    def aux_loss(all_reduce):
        model.balance = BalanceLosses({"expert": alpha}, all_reduce=all_reduce)
        return float(model(**batch).aux_loss)

    def with_another(counts):
        other = paddle.zeros_like(counts)
        other[:, 0], other[:, -2:] = counts[:, :-3].sum(axis=-1), counts[:, -2:]
        return counts + other

    alone = aux_loss(None)
    assert aux_loss(lambda counts: 2 * counts) == pytest.approx(alone)
    expected = 0.0
    for one in model(**batch).routings:
        shares = (one.scores / one.scores.sum(axis=-1, keepdim=True)).mean(axis=0).numpy()
        counts = one.tokens_per_expert.numpy() + np.eye(8)[0] * one.topk_idx.size
        expected += alpha * 8 * float(counts @ shares) / counts.sum()
    assert aux_loss(with_another) == pytest.approx(expected, rel=1e-5)  # float32 against float64


def test_a_model_to_train_has_the_losses_of_its_recipe(make_recipe):
    model = make_model(make_recipe(aux_loss_alpha=0.25, device_balance_alpha=0.5, expert_groups=2))
    assert model.balance.weights == {"sequence": 0.25, "expert": 0.0, "device": 0.5, "communication": 0.0}
    assert model.config.language_config.aux_loss_alpha == 0.25
    model.train()
    ids = paddle.randint(3, 90, [2, 12])
    output = model(input_ids=ids, labels=ids, segment_ids=paddle.ones_like(ids))
    assert output.balance_losses.keys() == {"sequence", "device"}
    assert float(output.loss) == float(output.next_token_loss)
