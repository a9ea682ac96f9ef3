"""The way of the tokens to their experts and back, by hand: three tokens, two choices each, four experts."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.moe.routing import Routing

TOPK_IDX = [[3, 0], [0, 1], [3, 1]]
WEIGHTS = [[0.5, 0.25], [1.0, 2.0], [0.0, 4.0]]
TOKENS = [[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]


def routing(capacity_mask=None) -> Routing:
    mask = None if capacity_mask is None else paddle.to_tensor(capacity_mask).astype("bool")
    return Routing(paddle.to_tensor(TOPK_IDX), paddle.to_tensor(WEIGHTS), paddle.full([3, 4], 0.25), mask)


def test_rows_are_sorted_by_expert_and_in_the_order_of_the_tokens():
    dispatched = routing().dispatch(paddle.to_tensor(TOKENS))
    assert dispatched.counts == dispatched.tokens_per_expert.tolist() == [2, 2, 0, 2]
    assert dispatched.rows[:, 0].tolist() == [1, 2, 2, 3, 1, 3]


def test_outputs_come_back_weighted():
    """Each expert multiplies by its index and one: token 0 gets 0.5 * 4 + 0.25 * 1 times itself."""
    dispatched = routing().dispatch(paddle.to_tensor(TOKENS))
    factors = paddle.to_tensor([1.0, 1, 2, 2, 4, 4]).unsqueeze(1)
    output = routing().combine(dispatched.rows * factors, dispatched.order)
    expected = np.array([0.5 * 4 + 0.25 * 1, 1 * 1 + 2 * 2, 0 * 4 + 4 * 2])[:, None] * TOKENS
    assert output.numpy() == pytest.approx(expected)


def test_outputs_in_the_order_of_the_tokens_are_weighted_too():
    """What grouped weights give: a row for each choice of each token."""
    factors = paddle.to_tensor(TOPK_IDX).astype("float32").unsqueeze(-1) + 1
    rows = (paddle.to_tensor(TOKENS).unsqueeze(1) * factors).reshape([6, 2])
    expected = np.array([0.5 * 4 + 0.25 * 1, 1 * 1 + 2 * 2, 0 * 4 + 4 * 2])[:, None] * TOKENS
    assert routing().combine(rows).numpy() == pytest.approx(expected)


def test_what_is_over_the_capacity_is_left_out():
    one = routing(capacity_mask=[[0, 1], [1, 0], [1, 1]])
    dispatched = one.dispatch(paddle.to_tensor(TOKENS))
    assert one.tokens_per_expert.tolist() == dispatched.counts == [2, 1, 0, 1]
    assert dispatched.rows[:, 0].tolist() == [1, 2, 3, 3]
    # Without weight, as a limiter leaves it; its rows come back as zeros.
    output = one.combine(dispatched.rows * paddle.to_tensor([1.0, 1, 2, 4]).unsqueeze(1), dispatched.order)
    expected = np.array([0.25 * 1, 1 * 1, 0 * 4 + 4 * 2])[:, None] * TOKENS
    assert output.numpy() == pytest.approx(expected)


def test_nothing_at_all():
    one = routing(capacity_mask=np.zeros([3, 2]))
    dispatched = one.dispatch(paddle.to_tensor(TOKENS))
    assert dispatched.rows.shape[0] == 0 and dispatched.counts == [0, 0, 0, 0]
    assert not one.combine(dispatched.rows, dispatched.order).any()


def test_weights_and_tokens_get_gradients():
    one = routing()
    tokens = paddle.to_tensor(TOKENS, stop_gradient=False)
    one.topk_weight.stop_gradient = False
    dispatched = one.dispatch(tokens)
    one.combine(dispatched.rows, dispatched.order).sum().backward()
    assert tokens.grad[:, 0].tolist() == [0.75, 3.0, 4.0]
    assert one.topk_weight.grad.tolist() == [[11, 11], [22, 22], [33, 33]]


@pytest.mark.parametrize("capacity_mask", [None, [[0, 1], [1, 0], [1, 1]]])
def test_the_weighted_sum_is_float32_under_amp(capacity_mask, assert_leaves_amp):
    one = routing(capacity_mask)
    dispatched = one.dispatch(paddle.to_tensor(TOKENS))
    assert_leaves_amp(lambda: one.combine(dispatched.rows, dispatched.order))
