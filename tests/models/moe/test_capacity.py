"""Which routed tokens are dropped, by hand, and what a layer and a model compute without them."""

import numpy as np
import paddle
import pytest

from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.models.moe.capacity import CapacityLimiter
from paddlemix_vl2.models.moe.context import RoutingContext
from paddlemix_vl2.models.moe.layer import DeepseekV2MoE

# Experts 0 and 1 are in group 0, experts 2 and 3 in group 1. Four tokens, two choices each.
SCORES = np.array(
    [[0.5, 0.3, 0.1, 0.1], [0.6, 0.25, 0.1, 0.05], [0.4, 0.1, 0.35, 0.15], [0.45, 0.28, 0.2, 0.07]],
    np.float32,
)
EXPERTS = np.array([[0, 1], [0, 1], [0, 2], [0, 1]])


def mask(capacity_factor=1.0, used=(1, 1, 1, 1), protected=(0, 0, 0, 0), experts=EXPERTS):
    limiter = CapacityLimiter(
        2, capacity_factor, paddle.to_tensor(used).astype("bool"), paddle.to_tensor(protected).astype("bool")
    )
    found = limiter.capacity_mask(paddle.to_tensor(experts), paddle.to_tensor(SCORES))
    return found.astype("int64").tolist()


def test_the_lowest_scores_of_a_group_are_dropped():
    """Budget 1.0 * 4 * 2 / 2 = 4. Group 0 has the scores 0.6 0.5 0.45 0.4 | 0.3 0.28 0.25; group 1 has one
    routed token, and keeps it though its score is lower than some that are dropped."""
    assert mask() == [[1, 0], [1, 0], [1, 1], [1, 0]]


def test_the_budget_follows_the_factor():
    assert mask(capacity_factor=2.0) == [[1, 1]] * 4
    # ceil(1.1 * 4) = 5: also 0.3. ceil(0.3 * 4) = 2: 0.6 and 0.5.
    assert mask(capacity_factor=1.1) == [[1, 1], [1, 0], [1, 1], [1, 0]]
    assert mask(capacity_factor=0.3) == [[1, 0], [1, 0], [0, 1], [0, 0]]


def test_protected_tokens_stay_and_take_from_the_others():
    """The second token keeps its 0.25; the place is lost by 0.4, the fourth of the others."""
    assert mask(protected=(0, 1, 0, 0)) == [[1, 0], [1, 1], [0, 1], [1, 0]]
    # More than a group's budget of 2 is protected: all of it stays, and nothing else.
    assert mask(capacity_factor=0.5, protected=(1, 1, 0, 0)) == [[1, 1], [1, 1], [0, 1], [0, 0]]


def test_padding_is_dropped_and_makes_no_budget():
    """Budget ceil(3 * 2 / 2) = 3 for 0.6 0.5 0.45 | 0.3 0.28 0.25; protection does not keep padding."""
    expected = [[1, 0], [1, 0], [0, 0], [1, 0]]
    assert mask(used=(1, 1, 0, 1)) == mask(used=(1, 1, 0, 1), protected=(0, 0, 1, 0)) == expected


def test_equal_scores_are_kept_in_the_order_of_the_tokens():
    scores = np.full([4, 4], 0.25, np.float32)
    limiter = CapacityLimiter(2, 0.5, paddle.ones([4], "bool"), paddle.zeros([4], "bool"))
    experts = paddle.to_tensor([[0, 1], [0, 1], [2, 3], [2, 3]])
    found = limiter.capacity_mask(experts, paddle.to_tensor(scores))
    assert found.tolist() == [[True, True], [False, False]] * 2


@pytest.fixture
def moe(language_config):
    paddle.seed(0)
    moe = DeepseekV2MoE(language_config())
    moe.train()
    return moe


def context_for(num_tokens: int, capacity_factor: float) -> RoutingContext:
    protected = paddle.arange(num_tokens) % 10 == 0
    used = paddle.ones([num_tokens], "bool")
    return RoutingContext(CapacityLimiter(2, capacity_factor, used, protected))


def test_a_layer_computes_what_is_left(moe):
    """Against a loop over the tokens; what is dropped is not computed, and gets no gradient."""
    hidden_states = paddle.randn([2, 10, moe.gate.weight.shape[1]])
    output, routing = moe.run(hidden_states, context_for(20, capacity_factor=0.7))
    marks, weights = routing.capacity_mask.numpy(), routing.topk_weight.numpy()
    assert 0 < marks.sum() < marks.size and marks[[0, 10]].all()
    assert int(routing.tokens_per_expert.sum()) == marks.sum()
    assert (weights[~marks] == 0).all() and (weights[marks] > 0).all()
    for token, row in enumerate(hidden_states.flatten(stop_axis=1)):
        expected = moe.shared_experts(row)
        for choice, expert in enumerate(routing.topk_idx[token].tolist()):
            if marks[token, choice]:
                expected += routing.topk_weight[token, choice] * moe.experts[expert](row)
        # Float32 sums in another order.
        assert float((output.flatten(stop_axis=1)[token] - expected).abs().max()) < 1e-5
    output.sum().backward()
    computed = routing.tokens_per_expert.numpy() > 0
    has_gradient = [expert.up_proj.weight.grad is not None for expert in moe.experts]
    assert computed.tolist() == has_gradient


def test_nothing_is_dropped_in_evaluation_or_where_it_fits(moe):
    hidden_states = paddle.randn([1, 12, moe.gate.weight.shape[1]])
    whole, _ = moe.run(hidden_states)
    output, routing = moe.run(hidden_states, context_for(12, capacity_factor=2.0))
    assert bool(routing.capacity_mask.all()) and np.array_equal(output.numpy(), whole.numpy())
    moe.eval()
    output, routing = moe.run(hidden_states, context_for(12, capacity_factor=0.3))
    assert routing.capacity_mask is None and np.array_equal(output.numpy(), whole.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mla_greedy", "mla_noaux_tc"])
def test_a_whole_model(case, golden, recorded_batch):
    """Every layer drops by its own scores, recomputed layers drop the same; in evaluation none does."""
    model = DeepseekVLV2ForCausalLM.from_pretrained(golden / case, dtype="float32", progress=False)
    used = recorded_batch["attention_mask"].flatten().astype("bool")
    protected = paddle.arange(used.size) < used.size // 2  # the first row
    context = RoutingContext(CapacityLimiter(2, 0.7, used, protected))

    def step(**options):
        model.clear_gradients()
        output = model(**recorded_batch, **options)
        output.loss.backward()
        return output, model.language.model.layers[1].mlp.gate.weight.grad.numpy()

    model.train()
    whole, whole_gradient = step()
    output, gradient = step(context=context)
    assert all(routing.capacity_mask is None for routing in whole.routings)
    shown = protected.numpy() & used.numpy()
    for routing in output.routings:
        marks = routing.capacity_mask.numpy()
        assert marks[shown].all() and not marks[~used.numpy()].any()
        assert not marks[used.numpy()].all(), "the second row drops some"
    assert float(output.loss) != float(whole.loss) and (gradient != whole_gradient).any()
    for layer in model.language.model.layers:
        layer.enable_recompute = True
    again, recomputed = step(context=context)
    assert float(again.loss) == float(output.loss) and np.array_equal(recomputed, gradient)
    model.eval()
    with paddle.no_grad():
        losses = [float(model(**recorded_batch, context=it).loss) for it in (None, context)]
    assert losses[0] == losses[1]
