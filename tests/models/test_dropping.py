"""Which pairs are dropped, by hand, and what a mixture computes without them."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.dropping import TokenDropping
from paddlemix_vl2.models.moe import DeepseekV2MoE

# Experts 0 and 1 are on device 0, experts 2 and 3 on device 1. Four tokens, two choices each.
SCORES = np.array(
    [[0.5, 0.3, 0.1, 0.1], [0.6, 0.25, 0.1, 0.05], [0.4, 0.1, 0.35, 0.15], [0.45, 0.28, 0.2, 0.07]],
    np.float32,
)
EXPERTS = np.array([[0, 1], [0, 1], [0, 2], [0, 1]])


def kept(capacity_factor=1.0, used=(1, 1, 1, 1), protected=(0, 0, 0, 0), experts=EXPERTS):
    dropping = TokenDropping(
        2, capacity_factor, paddle.to_tensor(used).astype("bool"), paddle.to_tensor(protected).astype("bool")
    )
    return dropping.keep(paddle.to_tensor(experts), paddle.to_tensor(SCORES)).astype("int64").tolist()


def test_the_lowest_scores_of_a_device_are_dropped():
    """Budget 1.0 * 4 * 2 / 2 = 4. Device 0 has the scores 0.6 0.5 0.45 0.4 | 0.3 0.28 0.25; device 1 has one
    pair, and keeps it though its score is lower than some that are dropped."""
    assert kept() == [[1, 0], [1, 0], [1, 1], [1, 0]]


def test_the_budget_follows_the_factor():
    assert kept(capacity_factor=2.0) == [[1, 1]] * 4
    # ceil(1.1 * 4) = 5: also 0.3. ceil(0.3 * 4) = 2: 0.6 and 0.5.
    assert kept(capacity_factor=1.1) == [[1, 1], [1, 0], [1, 1], [1, 0]]
    assert kept(capacity_factor=0.3) == [[1, 0], [1, 0], [0, 1], [0, 0]]


def test_protected_tokens_stay_and_take_from_the_others():
    """The second token keeps its 0.25; the place is lost by 0.4, the fourth of the others."""
    assert kept(protected=(0, 1, 0, 0)) == [[1, 0], [1, 1], [0, 1], [1, 0]]
    # More than a device's budget of 2 is protected: all of it stays, and nothing else.
    assert kept(capacity_factor=0.5, protected=(1, 1, 0, 0)) == [[1, 1], [1, 1], [0, 1], [0, 0]]


def test_padding_is_dropped_and_makes_no_budget():
    """Budget ceil(3 * 2 / 2) = 3 for 0.6 0.5 0.45 | 0.3 0.28 0.25; protection does not keep padding."""
    expected = [[1, 0], [1, 0], [0, 0], [1, 0]]
    assert kept(used=(1, 1, 0, 1)) == kept(used=(1, 1, 0, 1), protected=(0, 0, 1, 0)) == expected


def test_equal_scores_are_kept_in_the_order_of_the_tokens():
    scores = np.full([4, 4], 0.25, np.float32)
    dropping = TokenDropping(2, 0.5, paddle.ones([4], "bool"), paddle.zeros([4], "bool"))
    experts = paddle.to_tensor([[0, 1], [0, 1], [2, 3], [2, 3]])
    assert dropping.keep(experts, paddle.to_tensor(scores)).tolist() == [[True, True], [False, False]] * 2


@pytest.fixture
def mixture(language_config):
    paddle.seed(0)
    mixture = DeepseekV2MoE(language_config())
    mixture.train()
    return mixture


def dropping_for(num_tokens: int, capacity_factor: float) -> TokenDropping:
    return TokenDropping(
        2, capacity_factor, paddle.ones([num_tokens], "bool"), paddle.arange(num_tokens) % 10 == 0
    )


def test_a_mixture_computes_what_is_kept(mixture):
    """Against a loop over the tokens; what is dropped is not computed, and gets no gradient."""
    hidden = paddle.randn([2, 10, mixture.gate.weight.shape[1]])
    mixture.dropping = dropping_for(20, capacity_factor=0.7)
    output, routing = mixture(hidden)
    marks = routing.kept.numpy()
    assert 0 < marks.sum() < marks.size and marks[[0, 10]].all()
    assert int(routing.load.sum()) == marks.sum()
    assert (routing.weights.numpy()[~marks] == 0).all() and (routing.weights.numpy()[marks] > 0).all()
    for token, row in enumerate(hidden.flatten(stop_axis=1)):
        expected = mixture.shared_experts(row)
        for choice, expert in enumerate(routing.experts[token].tolist()):
            if marks[token, choice]:
                expected += routing.weights[token, choice] * mixture.experts[expert](row)
        # Float32 sums in another order.
        assert float((output.flatten(stop_axis=1)[token] - expected).abs().max()) < 1e-5
    output.sum().backward()
    computed = routing.load.numpy() > 0
    has_gradient = [expert.up_proj.weight.grad is not None for expert in mixture.experts]
    assert computed.tolist() == has_gradient


def test_nothing_is_dropped_in_evaluation_or_where_it_fits(mixture):
    hidden = paddle.randn([1, 12, mixture.gate.weight.shape[1]])
    whole, _ = mixture(hidden)
    mixture.dropping = dropping_for(12, capacity_factor=2.0)
    output, routing = mixture(hidden)
    assert bool(routing.kept.all()) and np.array_equal(output.numpy(), whole.numpy())
    mixture.dropping = dropping_for(12, capacity_factor=0.3)
    mixture.eval()
    output, routing = mixture(hidden)
    assert routing.kept is None and np.array_equal(output.numpy(), whole.numpy())
