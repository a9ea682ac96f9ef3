"""Small random checkpoints with outputs recorded from the published implementation
(tests/golden/README.md), and counters of what a model asks of its device."""

import contextlib
import json
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.profiler import Profiler, ProfilerTarget, TracerEventType

from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM

GOLDEN = Path(__file__).parents[1] / "golden"
READS = ("numpy", "item", "tolist", "cpu")
READS += ("__array__", "__bool__", "__complex__", "__float__", "__index__", "__int__")
# Their GPU kernels read on the host how large the output becomes, and nothing in Python shows it.
WAITING = {"bincount", "masked_select", "nonzero", "unique", "unique_consecutive"}


@lru_cache(maxsize=1)
def _recorded_inputs() -> dict:
    with np.load(GOLDEN / "inputs.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.fixture
def recorded_batch():
    """The recorded batch of two left-padded rows, as the model takes it; a new dictionary for every test."""
    arrays = _recorded_inputs()
    batch = {key: paddle.to_tensor(value) for key, value in arrays.items() if key != "position_ids"}
    batch["images"] = batch["images"].astype("float32")
    return batch


@pytest.fixture
def prompt_batch(recorded_batch):
    """The same without labels, for generation."""
    return {key: value for key, value in recorded_batch.items() if key != "labels"}


@pytest.fixture(scope="session")
def golden_model():
    """Loads a recorded case once; the function puts it in evaluation mode without gradients left over."""
    load = lru_cache(maxsize=None)(
        lambda case: DeepseekVLV2ForCausalLM.from_pretrained(GOLDEN / case, dtype="float32", progress=False)
    )

    def ready(case: str) -> DeepseekVLV2ForCausalLM:
        model = load(case)
        model.clear_gradients()
        model.eval()
        return model

    return ready


@pytest.fixture(scope="session")
def expected():
    def load(case: str) -> dict:
        with np.load(GOLDEN / case / "expected.npz") as file:
            arrays = {key: file[key] for key in file.files}
        norms = GOLDEN / case / "grad_norms.json"
        return {**arrays, "grad_norms": json.loads(norms.read_text()) if norms.exists() else {}}

    return load


@pytest.fixture
def language_config():
    """A small language config; keyword arguments override its fields."""

    def build(**changes) -> DeepseekV2Config:
        values = DeepseekVLV2Config.from_json(GOLDEN / "mla_greedy").language_config.to_dict()
        values.pop("model_type")
        return DeepseekV2Config(**{**values, **changes})

    return build


@pytest.fixture
def assert_leaves_amp(monkeypatch):
    """``assert_leaves_amp(call)``: the call switches amp off where it is on, gives what it gives without, and
    switches nothing where it is off. Paddle's autocast does nothing on the CPU: a flag takes its place."""
    flag, switched = [True], []

    @contextlib.contextmanager
    def auto_cast(enable=True, **_):
        switched.append(enable)
        flag.append(enable)
        yield
        flag.pop()

    monkeypatch.setattr(paddle.amp, "is_autocast_enabled", lambda: flag[-1])
    monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)

    def check(call) -> None:
        with_amp = call()
        assert switched == [False] and flag == [True]
        flag[0] = False
        without = call()
        assert switched == [False]
        assert np.array_equal(with_amp.numpy(), without.numpy())

    return check


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


@pytest.fixture(scope="session")
def dispatched():
    """``dispatched(run, *arguments, **keywords)``: the operators that a function dispatches."""

    def profile(run, *arguments, **keywords) -> Dispatched:
        profiler = Profiler(targets=[ProfilerTarget.CPU], on_trace_ready=lambda _: None)
        with profiler:
            run(*arguments, **keywords)
        events = [event for root in profiler.profiler_result.get_data().values() for event in _below(root)]
        layers = [event for event in events if event.type == TracerEventType.Forward]
        layers = [_operators(_below(event)) for event in layers if event.name == "DeepseekV2DecoderLayer"]
        return Dispatched(_operators(events), layers)

    return profile


def _below(event):
    yield event
    for child in event.children_node:
        yield from _below(child)


def _operators(events) -> list[str]:
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
