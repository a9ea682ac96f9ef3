"""Router statistics by hand, and loss-free balancing of a skewed router."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.configuration import DeepseekV2Config
from paddlemix_vl2.models.moe import Routing
from paddlemix_vl2.training.balance import RouterLoads, gates, most_devices, update_bias
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


def test_a_model_without_experts_has_no_statistics():
    loads = RouterLoads()
    loads.add((), paddle.ones([1, 3], "int64"))
    assert loads.loads is None
