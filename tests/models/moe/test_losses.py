"""Balance losses by hand: each of them, all of them weighted and summed, and the gradient that they get."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.moe.losses import (
    LOSSES,
    AddAuxiliaryLoss,
    BalanceLosses,
    Segments,
    communication_balance_loss,
    count_routed,
    device_balance_loss,
    expert_balance_loss,
    sequence_balance_loss,
)
from paddlemix_vl2.models.moe.routing import Routing

SCORES = np.array(
    [[0.7, 0.1, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.25, 0.25, 0.25, 0.25]]
)
EXPERTS = np.array([[0, 1], [0, 1], [3, 2], [0, 3]])
# Two sequences of two tokens: f = share of the choices times E, P = mean score.
FIRST, SECOND = 4 * (0.5 * 0.55 + 0.5 * 0.2), 4 * (0.25 * 0.175 + 0.25 * 0.275 + 0.5 * 0.325)


def segments_of(ids) -> Segments:
    ids = np.array(ids)
    return Segments(paddle.to_tensor(ids), int(ids.max()) + 1)


def tensors(segments, scores=SCORES):
    return paddle.to_tensor(scores.astype(np.float32)), paddle.to_tensor(EXPERTS), segments_of(segments)


def of_batch(segments, num_groups=1, parts=(slice(None),)):
    """Arguments of the losses over a batch, for each process; they have its ``parts``."""
    scores, experts, segments = tensors(segments)
    cut = [Segments(segments.ids[part], segments.count) for part in parts]
    counts = sum(
        count_routed(experts[part], own, 4, num_groups) for part, own in zip(parts, cut, strict=True)
    )
    return [(scores[part], own, counts) for part, own in zip(parts, cut, strict=True)]


def test_sequence_balance_by_hand():
    assert float(sequence_balance_loss(*tensors([0, 0, 1, 1]))) == pytest.approx((FIRST + SECOND) / 2)


def test_padding_does_not_count():
    """The last two tokens are padding: the first sequence alone remains."""
    assert float(sequence_balance_loss(*tensors([0, 0, -1, -1]))) == pytest.approx(FIRST)
    assert float(expert_balance_loss(*of_batch([0, 0, -1, -1])[0])) == pytest.approx(FIRST)


def test_counts_by_hand():
    """Choices of the four experts, tokens sent to groups {0, 1} and {2, 3}, tokens, processes."""
    *_, counts = of_batch([0, 0, 1, 1], num_groups=2)[0]
    assert counts.tolist() == [3, 2, 1, 2, 3, 2, 4, 1]
    *_, counts = of_batch([0, 0, -1, 1], 2, parts=(slice(0, 3), slice(3, 4)))[0]
    assert counts.tolist() == [3, 2, 0, 1, 3, 1, 3, 2]


def test_expert_balance_by_hand():
    counts = np.array([3, 2, 1, 2]) / 8
    expected = 4 * counts @ SCORES.mean(axis=0)
    assert float(expert_balance_loss(*of_batch([0, 0, 1, 1])[0])) == pytest.approx(expected)


def test_sigmoid_scores_count_in_proportion():
    once = float(sequence_balance_loss(*tensors([0, 0, 1, 1])))
    doubled = float(sequence_balance_loss(*tensors([0, 0, 1, 1], scores=SCORES * 0.3)))
    assert doubled == pytest.approx(once)


# Experts 0 and 1 are in group 0: 5 of 8 choices. f = counts * E / (K M), f' its mean per group.
DEVICE = (4 / 8 * np.array([5, 3]) / 2) @ SCORES.mean(axis=0).reshape([2, 2]).sum(axis=1)
# Three tokens are sent to group 0 and two to group 1, of at most one group per token each.
COMMUNICATION = (np.array([3, 2]) * 2 / (1 * 4)) @ SCORES.mean(axis=0).reshape([2, 2]).sum(axis=1)


def test_device_balance_by_hand():
    loss = device_balance_loss(*of_batch([0, 0, 1, 1], num_groups=2)[0], num_groups=2)
    assert float(loss) == pytest.approx(DEVICE)


def test_communication_balance_by_hand():
    loss = communication_balance_loss(*of_batch([0, 0, 1, 1], 2)[0], num_groups=2, groups_per_token=1)
    assert float(loss) == pytest.approx(COMMUNICATION)


def test_the_mean_over_processes_is_the_loss_of_the_batch():
    """One process has three tokens, one of them padding, and one has one; both know the counts of both."""
    segments = [0, -1, 1, 1]
    for loss, sizes in (
        (expert_balance_loss, {}),
        (device_balance_loss, {"num_groups": 2}),
        (communication_balance_loss, {"num_groups": 2, "groups_per_token": 2}),
    ):
        whole = loss(*of_batch(segments, 2)[0], **sizes)
        parts = [loss(*part, **sizes) for part in of_batch(segments, 2, (slice(0, 3), slice(3, 4)))]
        assert float(parts[0] + parts[1]) / 2 == pytest.approx(float(whole)), loss.__name__


def test_rows_as_sequences():
    segments = Segments.of_rows(2, 3)
    assert segments.ids.tolist() == [0, 0, 0, 1, 1, 1] and segments.count == 2


# Of one layer with the scores and choices above, over the sequences [0, 0, 1, 1], one group per token.
BY_HAND = {
    "sequence": (FIRST + SECOND) / 2,
    "expert": 4 * (np.array([3, 2, 1, 2]) / 8) @ SCORES.mean(axis=0),
    "device": DEVICE,
    "communication": COMMUNICATION,
}


def routing() -> Routing:
    scores = paddle.to_tensor(SCORES.astype(np.float32), stop_gradient=False)
    return Routing(paddle.to_tensor(EXPERTS), paddle.ones([4, 2]), scores)


def balance(weights, layers=1, **options):
    losses = BalanceLosses(weights, num_groups=2, groups_per_token=1, **options)
    found = losses([routing() for _ in range(layers)], segments_of([0, 0, 1, 1]))
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("name", LOSSES)
def test_each_by_its_name_with_its_weight(name):
    assert balance({name: 1.0}) == {name: pytest.approx(BY_HAND[name])}
    assert balance({name: 0.03}) == {name: pytest.approx(0.03 * BY_HAND[name])}


def test_all_of_them_over_the_layers():
    weights = {"sequence": 0.1, "expert": 0.2, "device": 0.3, "communication": 0.4}
    expected = {name: pytest.approx(3 * weight * BY_HAND[name]) for name, weight in weights.items()}
    assert balance(weights, layers=3) == expected
    losses = BalanceLosses(weights, 2, 1)
    total = losses.total([routing()], segments_of([0, 0, 1, 1]))
    assert float(total) == pytest.approx(sum(weights[name] * BY_HAND[name] for name in weights))


def test_nothing_wanted_and_nothing_there():
    for losses in (BalanceLosses({}), BalanceLosses({"sequence": 0.0, "expert": 0.0})):
        assert losses([routing()], segments_of([0, 0, 1, 1])) == {}
        assert losses.total([routing()], segments_of([0, 0, 1, 1])) is None
    assert BalanceLosses({"sequence": 1.0})([], segments_of([0])) == {}
    assert balance({"sequence": 0.0, "device": 1.0}).keys() == {"device"}


def test_two_processes_alike_have_the_loss_of_one():
    """``all_reduce`` sees the counts of all layers at once, in one call, and the sequence loss not at all."""
    seen = []

    def double(counts):
        seen.append(counts.shape)
        return 2 * counts

    weights = dict.fromkeys(LOSSES, 0.5)
    assert balance(weights, layers=2, all_reduce=double) == pytest.approx(balance(weights, layers=2))
    assert seen == [[2, 4 + 2 + 2]]
    balance({"sequence": 1.0}, all_reduce=double)
    assert len(seen) == 1


def test_counts_of_another_process_move_the_loss():
    """As many tokens there, all of whose choices fell on expert 0."""

    def with_another(counts):
        other = paddle.to_tensor([[8.0, 0, 0, 0, 4, 0, 4, 1]])
        return counts + other

    found = balance({"expert": 1.0}, all_reduce=with_another)["expert"]
    assert found == pytest.approx(4 * np.array([11, 2, 1, 2]) / 16 @ SCORES.mean(axis=0))


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_goes_to_the_scores(name):
    one = routing()
    BalanceLosses({name: 2.0}, 2, 1)([one], segments_of([0, 0, 1, 1]))[name].backward()
    step = 1e-3
    # Down the gradient the loss falls by about its square.
    moved = Routing(one.topk_idx, one.topk_weight, one.scores - step * one.scores.grad)
    before, after = (
        float(BalanceLosses({name: 2.0}, 2, 1)([r], segments_of([0, 0, 1, 1]))[name]) for r in (one, moved)
    )
    assert before - after == pytest.approx(step * float(one.scores.grad.square().sum()), rel=0.05)


def test_the_loss_of_a_config(language_config):
    assert BalanceLosses.of_config(language_config(aux_loss_alpha=0.3)).weights == {"sequence": 0.3}
    by_batch = language_config(aux_loss_alpha=0.3, seq_aux=False)
    assert BalanceLosses.of_config(by_batch).weights == {"expert": 0.3}


def test_a_balance_loss_beside_the_output_gets_a_gradient_of_one():
    """Whatever happens to the output, as in the published class."""
    output, aux_loss = paddle.to_tensor([2.0, 3.0]), paddle.to_tensor(5.0)
    output.stop_gradient = aux_loss.stop_gradient = False
    passed = AddAuxiliaryLoss.apply(output * 1, aux_loss * 1)
    assert passed.tolist() == [2.0, 3.0]
    (passed.sum() / 4).backward()
    assert output.grad.tolist() == [0.25, 0.25]
    assert float(aux_loss.grad) == 1.0


def test_the_losses_are_float32_under_amp(assert_leaves_amp):
    losses, segments = BalanceLosses(dict.fromkeys(LOSSES, 1.0), 2, 1), segments_of([0, 0, 1, 1])
    assert_leaves_amp(lambda: paddle.stack(list(losses([routing()], segments).values())))
