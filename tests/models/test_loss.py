"""The loss against numpy, on learned positions only."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlemix_vl2.layouts.batch_plan import IGNORE_ID
from paddlemix_vl2.models import loss
from paddlemix_vl2.models.loss import next_token_loss


@pytest.fixture
def setting():
    rng = np.random.default_rng(3)
    hidden_states = rng.standard_normal([2, 7, 5]).astype(np.float32)
    head = nn.Linear(5, 11, bias_attr=False)
    labels = np.full([2, 7], IGNORE_ID)
    labels[0, 0], labels[0, 3:6], labels[1, 6] = 4, [1, 2, 10], 7
    return hidden_states, head, labels


def by_hand(hidden_states, head, labels):
    logits = hidden_states.astype(np.float64) @ head.weight.numpy().astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    pairs = [(0, 3, 1), (0, 4, 2), (0, 5, 10), (1, 6, 7)]  # label 4 at position 0 has no position before it
    return -np.mean([log_probs[row, position - 1, label] for row, position, label in pairs])


@pytest.mark.parametrize("rows", [1, 3, 256])
@pytest.mark.parametrize("known", [False, True])
def test_mean_over_learned_positions(setting, rows, known, monkeypatch):
    """Also where the host knows which they are: places in [B, T - 1], of positions 2 to 4 and 11."""
    monkeypatch.setattr(loss, "ROWS_PER_SLICE", rows)
    hidden_states, head, labels = setting
    targets = np.array([2, 3, 4, 11]) if known else None
    value = next_token_loss(paddle.to_tensor(hidden_states), paddle.to_tensor(labels), head, targets)
    assert float(value) == pytest.approx(by_hand(*setting), rel=1e-5)


@pytest.mark.parametrize("targets", [None, np.zeros([0], np.int64)])
def test_nothing_learned_is_zero_with_zero_gradient(setting, targets):
    hidden_states, head, labels = setting
    hidden_states = paddle.to_tensor(hidden_states)
    hidden_states.stop_gradient = False
    value = next_token_loss(hidden_states, paddle.full(labels.shape, IGNORE_ID, "int64"), head, targets)
    value.backward()
    assert float(value) == 0.0 and float(hidden_states.grad.abs().sum()) == 0.0
