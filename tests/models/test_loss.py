"""The loss against numpy, on supervised positions only."""

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlemix_vl2.models import loss
from paddlemix_vl2.models.loss import IGNORE_ID, next_token_loss


@pytest.fixture
def setting():
    rng = np.random.default_rng(3)
    hidden = rng.standard_normal([2, 7, 5]).astype(np.float32)
    head = nn.Linear(5, 11, bias_attr=False)
    labels = np.full([2, 7], IGNORE_ID)
    labels[0, 0], labels[0, 3:6], labels[1, 6] = 4, [1, 2, 10], 7
    return hidden, head, labels


def by_hand(hidden, head, labels):
    logits = hidden.astype(np.float64) @ head.weight.numpy().astype(np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    pairs = [(0, 3, 1), (0, 4, 2), (0, 5, 10), (1, 6, 7)]  # label 4 at position 0 has no position before it
    return -np.mean([log_probs[row, position - 1, label] for row, position, label in pairs])


@pytest.mark.parametrize("rows", [1, 3, 256])
def test_mean_over_supervised_positions(setting, rows, monkeypatch):
    monkeypatch.setattr(loss, "ROWS_PER_SLICE", rows)
    hidden, head, labels = setting
    value = next_token_loss(paddle.to_tensor(hidden), paddle.to_tensor(labels), head)
    assert float(value) == pytest.approx(by_hand(*setting), rel=1e-5)


def test_nothing_supervised_is_zero_with_zero_gradient(setting):
    hidden, head, labels = setting
    hidden = paddle.to_tensor(hidden)
    hidden.stop_gradient = False
    value = next_token_loss(hidden, paddle.full(labels.shape, IGNORE_ID, "int64"), head)
    value.backward()
    assert float(value) == 0.0 and float(hidden.grad.abs().sum()) == 0.0
