"""Router statistics by hand."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.moe.routing import Routing
from paddlemix_vl2.models.moe.statistics import RouterStatistics


def routing(experts, scores):
    experts, scores = np.array(experts), np.array(scores, np.float32)
    return Routing(*map(paddle.to_tensor, (experts, np.ones_like(experts, np.float32), scores)))


def test_statistics_by_hand():
    """Three tokens and one of padding, then one more micro-batch of a single token; two of four experts."""
    statistics = RouterStatistics()
    even, sure = [0.25, 0.25, 0.25, 0.25], [1.0, 0.0, 0.0, 0.0]
    first = routing([[3, 3], [0, 1], [0, 1], [0, 2]], [even, even, sure, even])
    statistics.add((first,), paddle.to_tensor([[0, 1], [1, 2]]))
    statistics.add((routing([[0, 3]], [sure]),), paddle.to_tensor([[1]]))
    values = statistics.values()
    assert values["expert_share"][0] == pytest.approx([4 / 8, 2 / 8, 1 / 8, 1 / 8])
    assert values["max_vio"][0] == pytest.approx((4 - 2) / 2)
    assert values["entropy"][0] == pytest.approx(2 * np.log(4) / 4, abs=1e-6)
    assert statistics.tokens_per_expert.tolist() == [[4, 2, 1, 1]]


def test_dropped_choices_by_hand():
    """Of the six choices that are no padding two are dropped; what padding loses does not count."""
    scores = paddle.full([4, 4], 0.25)
    mask = paddle.to_tensor([[False, False], [True, False], [True, True], [False, True]])
    experts = paddle.to_tensor([[3, 3], [0, 1], [0, 1], [0, 2]])
    statistics = RouterStatistics()
    statistics.add((Routing(experts, paddle.ones([4, 2]), scores, mask),), paddle.to_tensor([[0, 1], [1, 2]]))
    values = statistics.values()
    assert values["dropped_share"] == [pytest.approx(2 / 6)]
    assert values["expert_share"][0] == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0])  # as they were chosen


def test_sums_over_processes():
    """A second process that has seen the same leaves all shares as they are."""
    statistics = RouterStatistics()
    statistics.add((routing([[0, 1]], [[0.7, 0.1, 0.1, 0.1]]),), paddle.to_tensor([[1]]))
    before = statistics.values()
    statistics.reduce(lambda tensor: tensor.set_value(2 * tensor))
    assert statistics.tokens_per_expert.tolist() == [[2, 2, 0, 0]]
    for name, value in statistics.values().items():
        assert np.allclose(value, before[name]), name


def test_a_model_without_experts_has_no_statistics():
    statistics = RouterStatistics()
    assert statistics.is_empty
    statistics.add((), paddle.ones([1, 3], "int64"))
    assert statistics.is_empty and statistics.values() == {}
