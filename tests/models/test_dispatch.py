"""How many operators a decode step dispatches, and how often it waits for the device.

On a GPU an operator of a small step costs the time of its dispatch, whatever its size, and a read on the host
waits for everything before it. Neither depends on the device, so both are counted on the CPU. The bounds are
the counts of Paddle 3.3.1 and a little more: who passes one finds the operators or reads in the message, and
raises it only for a reason.
"""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import paddle
import pytest
from paddle.profiler import Profiler, ProfilerTarget, TracerEventType

from paddlemix_vl2.models.moe import DeepseekV2MoE, stack_experts

READS = ("numpy", "item", "tolist", "cpu")
READS += ("__array__", "__bool__", "__complex__", "__float__", "__index__", "__int__")
# Their GPU kernels read on the host how large the output becomes, and nothing in Python shows it.
WAITING = {"bincount", "masked_select", "nonzero", "unique", "unique_consecutive"}

# case -> operators of a dense layer, of a mixture layer (one token, three experts), of the rest of a step
STEP = {"mha_greedy": (58, 99, 31), "mla_greedy": (71, 112, 31)}
# operators of a mixture with its shared experts, and those of each expert that has tokens
MIXTURE, EXPERT = 31, 5
STACKED_MIXTURE = 32  # with shared experts, however many have tokens
SLACK = 3
PROMPT = [list(range(3, 23))]


@dataclass(frozen=True)
class Dispatched:
    """Names of operators, in order: all of a run, and those within each decoder layer."""

    all: list[str]
    layers: list[list[str]]

    @property
    def outside(self) -> int:
        return len(self.all) - sum(map(len, self.layers))

    @property
    def waiting(self) -> list[str]:
        return [name for name in self.all if name in WAITING]


def dispatched(run, *arguments) -> Dispatched:
    profiler = Profiler(targets=[ProfilerTarget.CPU], on_trace_ready=lambda _: None)
    with paddle.no_grad(), profiler:
        run(*arguments)
    events = [event for root in profiler.profiler_result.get_data().values() for event in below(root)]
    layers = [event for event in events if event.type == TracerEventType.Forward]
    layers = [operators(below(event)) for event in layers if event.name == "DeepseekV2DecoderLayer"]
    return Dispatched(operators(events), layers)


def below(event):
    yield event
    for child in event.children_node:
        yield from below(child)


def operators(events) -> list[str]:
    found = [event.name for event in events if event.type == TracerEventType.Operator]
    return [name.removesuffix(" dygraph") for name in found]


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Grows with every read of a tensor on the host; a read that another one makes is not counted."""
    made, depth = [], [0]

    def counted(name):
        original = getattr(paddle.Tensor, name)

        def read(*arguments, **keywords):
            if not depth[0]:
                caller = sys._getframe(1)
                made.append(f"{name} at {Path(caller.f_code.co_filename).name}:{caller.f_lineno}")
            depth[0] += 1
            try:
                return original(*arguments, **keywords)
            finally:
                depth[0] -= 1

        return read

    for name in READS:
        monkeypatch.setattr(paddle.Tensor, name, counted(name))
    return made


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


def test_the_counters_count(reads):
    x = paddle.ones([2])
    run = dispatched(lambda: paddle.nonzero(x + x))
    assert run.all == ["add", "nonzero"] and run.waiting == ["nonzero"] and run.outside == 2
    assert reads == []
    one = x[0]
    assert [x.numpy().size, x.tolist()[0], one.item(), float(one), int(one), bool(one)] == [
        2,
        1,
        1,
        1,
        1,
        True,
    ]
    assert "ab"[one.astype("int64")] == "b" and x.cpu() is x
    named = ["numpy", "tolist", "item", "__float__", "__int__", "__bool__", "__index__", "cpu"]
    assert [read.split()[0] for read in reads] == named
    assert all(f" {Path(__file__).name}:" in read for read in reads)


@pytest.mark.parametrize("case", STEP)
def test_a_decode_step(case, filled, reads):
    model, cache = filled(case)
    token = paddle.to_tensor([[5]])
    reads.clear()
    run = dispatched(model.decode_step, token, cache)
    dense, mixture, rest = STEP[case]
    assert len(run.layers) == 3, "the profiler names the layers in another way"
    check("dense layer", run.layers[0], dense)
    check("mixture layer", run.layers[1], mixture)
    check("mixture layer", run.layers[2], mixture)
    assert run.outside <= rest + SLACK, f"outside the layers: {run.outside} operators, were {rest}"
    assert len(reads) <= 2, f"{len(reads)} host reads, one per mixture layer is enough: {reads}"
    assert not run.waiting, f"operators that wait on a GPU: {run.waiting}"


@pytest.mark.parametrize("case", STEP)
def test_no_step_costs_more_than_another(case, filled):
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
    assert per_step <= 3, f"{per_step} host reads per step, two mixture layers and a token want 3: {reads}"


def test_a_mixture_with_stacked_experts(language_config, reads):
    """As on a GPU: nothing is read on the host, and the number of operators is that of one expert."""
    mixture = DeepseekV2MoE(language_config(n_routed_experts=64))
    stack_experts(mixture)
    reads.clear()
    run = dispatched(mixture, paddle.randn([1, 1, 48]))
    check("a token", run.all, STACKED_MIXTURE)
    assert not reads and not run.waiting


@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("experts", [8, 64])
def test_a_mixture(tokens, experts, language_config, reads):
    """Its operators follow the experts that have tokens, not those that there are."""
    paddle.seed(0)
    mixture = DeepseekV2MoE(language_config(n_routed_experts=experts))
    hidden = paddle.randn([1, tokens, 48])
    used = int((mixture(hidden)[1].load > 0).sum())
    reads.clear()
    run = dispatched(mixture, hidden)
    check(f"{used} of {experts} experts", run.all, MIXTURE + EXPERT * used)
    assert len(reads) <= 1, f"{len(reads)} host reads, the counts of the experts are enough: {reads}"
    assert not run.waiting, f"operators that wait on a GPU: {run.waiting}"
