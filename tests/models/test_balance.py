"""Balance losses by hand, and the gradient that they get through the reported loss."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.balance import (
    AddAuxiliaryLoss,
    batch_loads,
    communication_balance_loss,
    device_balance_loss,
    expert_balance_loss,
    number_segments,
    sequence_balance_loss,
)

SCORES = np.array(
    [[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]
)
EXPERTS = np.array([[0, 1], [0, 1], [3, 2], [0, 3]])


def tensors(segments, scores=SCORES):
    return (
        paddle.to_tensor(scores.astype(np.float32)),
        paddle.to_tensor(EXPERTS),
        paddle.to_tensor(np.array(segments)),
    )


def of_batch(segments, num_devices=1, parts=(slice(None),)):
    """Arguments of the losses over a batch, for each process; they have its ``parts``."""
    scores, experts, segments = tensors(segments)
    sizes = {"num_experts": 4, "num_devices": num_devices}
    loads = sum(batch_loads(experts[part], segments[part], **sizes) for part in parts)
    return [(scores[part], segments[part], loads) for part in parts]


def test_sequence_balance_by_hand():
    """Two sequences of two tokens: f = share of the choices times E, P = mean score."""
    first = 4 * (0.5 * 0.55 + 0.5 * 0.2)
    second = 4 * (0.25 * 0.175 + 0.25 * 0.275 + 0.5 * 0.325)
    assert float(sequence_balance_loss(*tensors([0, 0, 1, 1]))) == pytest.approx((first + second) / 2)


def test_padding_does_not_count():
    """The last two tokens are padding: the first sequence alone remains."""
    expected = 4 * (0.5 * 0.55 + 0.5 * 0.2)
    assert float(sequence_balance_loss(*tensors([0, 0, -1, -1]))) == pytest.approx(expected)
    assert float(expert_balance_loss(*of_batch([0, 0, -1, -1])[0])) == pytest.approx(expected)


def test_loads_by_hand():
    """Choices of the four experts, tokens on devices {0, 1} and {2, 3}, tokens, processes."""
    *_, loads = of_batch([0, 0, 1, 1], num_devices=2)[0]
    assert loads.tolist() == [3, 2, 1, 2, 3, 2, 4, 1]
    *_, loads = of_batch([0, 0, -1, 1], 2, parts=(slice(0, 3), slice(3, 4)))[0]
    assert loads.tolist() == [3, 2, 0, 1, 3, 1, 3, 2]


def test_expert_balance_by_hand():
    counts = np.array([3, 2, 1, 2]) / 8
    expected = 4 * counts @ SCORES.mean(axis=0)
    assert float(expert_balance_loss(*of_batch([0, 0, 1, 1])[0])) == pytest.approx(expected)


def test_sigmoid_scores_count_in_proportion():
    once = float(sequence_balance_loss(*tensors([0, 0, 1, 1])))
    doubled = float(sequence_balance_loss(*tensors([0, 0, 1, 1], scores=SCORES * 0.3)))
    assert doubled == pytest.approx(once)


def test_device_balance_by_hand():
    """Experts 0 and 1 are on device 0: 5 of 8 choices. f = counts * E / (K M), f' its mean per device."""
    shares = 4 / 8 * np.array([5, 3]) / 2
    expected = shares @ SCORES.mean(axis=0).reshape([2, 2]).sum(axis=1)
    loss = device_balance_loss(*of_batch([0, 0, 1, 1], num_devices=2)[0], num_devices=2)
    assert float(loss) == pytest.approx(expected)


def test_communication_balance_by_hand():
    """Three tokens are sent to device 0 and two to device 1, of at most one device per token each."""
    shares = np.array([3, 2]) * 2 / (1 * 4)
    expected = shares @ SCORES.mean(axis=0).reshape([2, 2]).sum(axis=1)
    loss = communication_balance_loss(*of_batch([0, 0, 1, 1], 2)[0], num_devices=2, devices_per_token=1)
    assert float(loss) == pytest.approx(expected)


def test_the_mean_over_processes_is_the_loss_of_the_batch():
    """One process has three tokens, one of them padding, and one has one; both know the loads of both."""
    segments = [0, -1, 1, 1]
    for loss, sizes in (
        (expert_balance_loss, {}),
        (device_balance_loss, {"num_devices": 2}),
        (communication_balance_loss, {"num_devices": 2, "devices_per_token": 2}),
    ):
        whole = loss(*of_batch(segments, 2)[0], **sizes)
        parts = [loss(*part, **sizes) for part in of_batch(segments, 2, (slice(0, 3), slice(3, 4)))]
        assert float(parts[0] + parts[1]) / 2 == pytest.approx(float(whole)), loss.__name__


def test_segments_are_numbered_through():
    segment_ids = paddle.to_tensor([[0, 1, 1, 2], [1, 2, 3, 3], [0, 0, 0, 0], [0, 0, 1, 1]])
    expected = [-1, 0, 0, 1, 2, 3, 4, 4, -1, -1, -1, -1, -1, -1, 5, 5]
    assert number_segments(segment_ids).tolist() == expected


def test_a_factor_on_the_loss_reaches_the_balance_loss():
    loss, auxiliary = paddle.to_tensor(2.0), paddle.to_tensor(5.0)
    loss.stop_gradient = auxiliary.stop_gradient = False
    output = AddAuxiliaryLoss.apply(loss * 1, auxiliary * 1)
    assert float(output) == 2.0
    (output / 4).backward()
    assert float(loss.grad) == 0.25
    assert float(auxiliary.grad) == 0.25
