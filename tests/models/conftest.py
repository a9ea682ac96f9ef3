"""Small random checkpoints with outputs recorded from the published implementation
(tests/golden/README.md)."""

import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix_vl2.configuration import DeepseekV2Config, DeepseekVLV2Config
from paddlemix_vl2.models.vl2 import DeepseekVLV2ForCausalLM

GOLDEN = Path(__file__).parents[1] / "golden"


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
