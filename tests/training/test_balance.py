"""Router statistics by hand, and loss-free balancing of a skewed router."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.configuration import DeepseekV2Config
from paddlemix_vl2.models.moe import Routing
from paddlemix_vl2.training.balance import RouterLoads, gates, most_devices, protect, update_bias
from paddlemix_vl2.training.run import make_model


def routing(experts, scores):
    experts, scores = np.array(experts), np.array(scores, np.float32)
    return Routing(*map(paddle.to_tensor, (experts, np.ones_like(experts, np.float32), scores)))


def test_statistics_by_hand():
    """Three tokens and one of padding, then one more micro-batch of a single token; two of four experts."""
    loads = RouterLoads()
    even, sure = [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]
    first = routing([[3, 3], [0, 1], [0, 1], [0, 2]], [even, even, sure, even])
    loads.add((first,), paddle.to_tensor([[0, 1], [1, 2]]))
    loads.add((routing([[0, 3]], [sure]),), paddle.to_tensor([[1]]))
    statistics = loads.statistics()
    assert statistics["load"][0] == pytest.approx([4 / 8, 2 / 8, 1 / 8, 1 / 8])
    assert statistics["max_vio"][0] == pytest.approx((4 - 2) / 2)
    assert statistics["entropy"][0] == pytest.approx(2 * np.log(4) / 4, abs=1e-6)


def test_dropped_pairs_by_hand():
    """Of the six choices that are no padding two are dropped; what padding loses does not count."""
    scores = paddle.full([4, 4], 0.25)
    kept = paddle.to_tensor([[False, False], [True, False], [True, True], [False, True]])
    experts = paddle.to_tensor([[3, 3], [0, 1], [0, 1], [0, 2]])
    loads = RouterLoads()
    loads.add((Routing(experts, paddle.ones([4, 2]), scores, kept),), paddle.to_tensor([[0, 1], [1, 2]]))
    assert loads.statistics()["dropped_share"] == [pytest.approx(2 / 6)]
    assert loads.statistics()["load"][0] == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0])  # as they were chosen


def test_what_is_protected_follows_from_the_draw():
    """The same samples in other rows, behind padding and beside others; the share is the recipe's."""
    draws, segment_ids = [(5, 6, 7), (8,)], np.array([[1, 1, 2, 3], [0, 0, 1, 1]])
    flags = {}
    for seed in range(40):
        marks = protect(draws, segment_ids, share=0.5, seed=seed)
        assert marks[0, 0] == marks[0, 1] and marks[1, 2] == marks[1, 3] and not marks[1, :2].any()
        flags[seed] = marks[0, 0], marks[0, 2], marks[0, 3], marks[1, 2]
        alone = protect([(8,), (7, 6)], np.array([[1, 1], [1, 2]]), share=0.5, seed=seed)
        assert (alone[1, 1], alone[1, 0], alone[0, 0]) == flags[seed][1:]
    assert len(set(flags.values())) > 8
    many = protect([range(2000)], np.arange(1, 2001)[None], share=0.1, seed=0)
    # A share of 0.1 of 2000 has a standard deviation of 0.007.
    assert many.mean() == pytest.approx(0.1, abs=0.03)
    assert not protect(draws, segment_ids, 0.0, 0).any() and protect(draws, segment_ids, 1.0, 0).sum() == 6


def test_the_bias_levels_a_skewed_router(make_recipe):
    """A router that prefers two experts for every token: MaxVio falls from far above 1 to near 0."""
    arguments = make_recipe()
    model = make_model(arguments)
    gate = gates(model)[0]
    paddle.seed(7)
    hidden = paddle.randn([1, 512, 48])
    with paddle.no_grad():
        gate.weight.set_value(paddle.randn(gate.weight.shape) * 0.3)
        gate.weight[:2] += paddle.ones([2, 48]) * 0.5
        hidden = hidden + 0.3
    segment_ids = paddle.ones([1, 512], "int64")

    def max_vio_then_update() -> float:
        loads = RouterLoads()
        loads.add((gate(hidden),) * 2, segment_ids)
        update_bias(model, loads.loads, speed=0.003)
        return loads.statistics()["max_vio"][0]

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
def test_devices_that_a_token_may_reach(changes, most):
    """Of eight devices; the second row is DeepSeek-V2, whose M is 3."""
    assert most_devices(DeepseekV2Config(**changes), num_devices=8) == most


def test_a_model_that_balances_over_the_batch_takes_the_loads_of_all_processes(make_recipe):
    """``seq_aux`` false: two processes with the same tokens have the loss of one; with a second process whose
    tokens went to expert 0 alone, its load counts."""
    model = make_model(make_recipe())
    model.train()
    model.config.language_config.seq_aux = False
    ids = paddle.randint(3, 90, [2, 12])

    def aux_loss(total):
        model.batch_total = total
        return float(model(input_ids=ids, labels=ids, segment_ids=paddle.ones_like(ids)).aux_loss)

    def with_another(loads):
        other = paddle.zeros_like(loads)
        other[:, 0], other[:, -2:] = loads[:, :-3].sum(axis=-1), loads[:, -2:]
        return loads + other

    alone = aux_loss(None)
    assert aux_loss(lambda loads: 2 * loads) == pytest.approx(alone)
    routings = model(input_ids=ids, labels=ids, segment_ids=paddle.ones_like(ids)).routings
    expected = 0.0
    for one in routings:
        shares = (one.scores / one.scores.sum(axis=-1, keepdim=True)).mean(axis=0).numpy()
        load = one.load.numpy() + np.eye(8)[0] * one.experts.size
        expected += model.config.language_config.aux_loss_alpha * 8 * float(load @ shares) / load.sum()
    assert aux_loss(with_another) == pytest.approx(expected, rel=1e-5)  # float32 against float64


def test_a_model_without_experts_has_no_statistics():
    loads = RouterLoads()
    loads.add((), paddle.ones([1, 3], "int64"))
    assert loads.loads is None
