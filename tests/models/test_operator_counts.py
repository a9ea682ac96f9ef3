"""How many operators a decode step dispatches, and how often it waits for the device.

On a GPU an operator of a small step costs the time of its dispatch, whatever its size, and a read on the host
waits for everything before it. Neither depends on the device, so both are counted on the CPU. The bounds are
the counts of Paddle 3.3.1 and a little more: who passes one finds the operators or reads in the message, and
raises it only for a reason.
"""

from collections import Counter

import paddle
import pytest

from paddlemix_vl2.models.moe.layer import DeepseekV2MoE

# case -> operators of a dense layer, of an MoE layer (one token, three experts), of the rest of a step
STEP = {"mha_greedy": (58, 99, 31), "mla_greedy": (71, 112, 31)}
# operators of an MoE layer with its shared experts, and those of each expert that has tokens
LAYER, EXPERT = 31, 5
GROUPED_LAYER = 32  # with shared experts, however many have tokens
SLACK = 3
PROMPT = [list(range(3, 23))]


@pytest.fixture
def filled(golden_model):
    """case -> model and a cache with a prompt of 20 tokens and one step, which laid out what steps need."""

    def fill(case: str, capacity: int = 40):
        model, ids = golden_model(case), paddle.to_tensor(PROMPT)
        _, cache = model.prefill({"input_ids": ids, "attention_mask": paddle.ones_like(ids)}, capacity)
        model.decode_step(ids[:, :1], cache)
        return model, cache

    return fill


def check(what: str, names: list[str], bound: int) -> None:
    assert len(names) <= bound + SLACK, f"{what}: {len(names)} operators, were {bound}: {Counter(names)}"


@pytest.mark.parametrize("case", STEP)
def test_a_decode_step(case, filled, reads, dispatched):
    model, cache = filled(case)
    token = paddle.to_tensor([[5]])
    reads.clear()
    run = dispatched(model.decode_step, token, cache)
    dense, moe, rest = STEP[case]
    assert len(run.layers) == 3, "the profiler names the layers in another way"
    check("dense layer", run.layers[0], dense)
    check("MoE layer", run.layers[1], moe)
    check("MoE layer", run.layers[2], moe)
    assert run.outside <= rest + SLACK, f"outside the layers: {run.outside} operators, were {rest}"
    assert len(reads) <= 2, f"{len(reads)} host reads, one per MoE layer is enough: {reads}"
    assert not run.waiting, f"operators that wait on a GPU: {run.waiting}"


@pytest.mark.parametrize("case", STEP)
def test_no_step_costs_more_than_another(case, filled, dispatched):
    """Neither a longer answer nor a larger cache adds operators."""
    token = paddle.to_tensor([[5]])
    counts = []
    for capacity in (40, 400):
        model, cache = filled(case, capacity)
        for unwatched in (0, 15):
            for _ in range(unwatched):
                model.decode_step(token, cache)
            counts.append(len(dispatched(model.decode_step, token, cache).all))
    assert len(set(counts)) == 1, f"operators of a step: {counts}"


@pytest.mark.parametrize("case", STEP)
def test_an_answer_reads_its_tokens_and_the_counts_of_the_experts(case, golden_model, reads):
    def reads_of(steps: int) -> int:
        reads.clear()
        golden_model(case).generate(paddle.to_tensor(PROMPT), max_new_tokens=steps, eos_token_id=[])
        return len(reads)

    per_step = (reads_of(6) - reads_of(2)) / 4
    assert per_step <= 3, f"{per_step} host reads per step, two MoE layers and a token want 3: {reads}"


@paddle.no_grad()
def test_a_layer_with_grouped_weights(language_config, reads, dispatched):
    """As on a GPU: nothing is read on the host, and the number of operators is that of one expert."""
    moe = DeepseekV2MoE(language_config(n_routed_experts=64))
    moe.experts.group_weights()
    reads.clear()
    run = dispatched(moe, paddle.randn([1, 1, 48]))
    check("a token", run.all, GROUPED_LAYER)
    assert not reads and not run.waiting


@paddle.no_grad()
@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("experts", [8, 64])
def test_a_layer(tokens, experts, language_config, reads, dispatched):
    """Its operators follow the experts that have tokens, not those that there are."""
    paddle.seed(0)
    moe = DeepseekV2MoE(language_config(n_routed_experts=experts))
    hidden_states = paddle.randn([1, tokens, 48])
    used = int((moe.run(hidden_states)[1].tokens_per_expert > 0).sum())
    reads.clear()
    run = dispatched(moe, hidden_states)
    check(f"{used} of {experts} experts", run.all, LAYER + EXPERT * used)
    assert len(reads) <= 1, f"{len(reads)} host reads, the counts of the experts are enough: {reads}"
    assert not run.waiting, f"operators that wait on a GPU: {run.waiting}"
