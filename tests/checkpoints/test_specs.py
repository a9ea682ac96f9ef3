"""Specs of the layers cover every tensor and convert both ways; two oddities are recognised by name."""

from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle import nn

from paddlemix_vl2.checkpoints import ParameterSpec, parameter_specs
from paddlemix_vl2.checkpoints.specs import ODDITIES, TensorLayout, expert_of, spec_of
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.models.meta import model_specs

TESTS = Path(__file__).parents[1]
CONFIG_FILES = sorted(
    [*(TESTS.parent / "configs" / "model").glob("*.json"), *TESTS.glob("golden/*/config.json")]
)
GATE = "language.model.layers.1.mlp.gate.weight"
BIAS = "language.model.layers.1.mlp.gate.e_score_correction_bias"
OUTPUT = "language.model.layers.0.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def all_specs() -> dict[str, ParameterSpec]:
    """Of every name that a config of this repository gives, and those of attention_bias."""
    assert len(CONFIG_FILES) >= 8
    configs = [DeepseekVLV2Config.from_json(file) for file in CONFIG_FILES]
    for config in list(configs):
        values = config.to_dict()
        values["language_config"]["attention_bias"] = True
        configs.append(DeepseekVLV2Config(**values))
    return {name: spec for config in configs for name, spec in model_specs(config).items()}


def test_golden_names_and_shapes(case):
    stored = {name: array.shape for name, array in case.weights.items()}
    assert {name: spec.shape for name, spec in case.specs.items()} == stored


def test_every_oddity_is_used_and_has_a_reason(all_specs):
    plain = [
        spec_of(name, spec.shape_in(TensorLayout.PADDLE), spec.linear) for name, spec in all_specs.items()
    ]
    assert plain == list(all_specs.values())
    marks = {(spec.either_way, spec.dtype) for spec in plain}
    assert all(oddity.reason and (oddity.either_way, oddity.dtype) in marks for oddity in ODDITIES)


def test_linear_weights_are_the_matrices_but_two(all_specs):
    for name, spec in all_specs.items():
        matrix = len(spec.shape) == 2 and not name.endswith(("embed_tokens.weight", "mlp.gate.weight"))
        assert spec.linear == matrix, name


def test_only_the_gate_is_held_either_way_round(all_specs):
    gates = {name for name in all_specs if name.endswith("mlp.gate.weight")}
    assert {name for name, spec in all_specs.items() if spec.either_way} == gates


def test_only_the_correction_bias_has_a_dtype_of_its_own(all_specs):
    own = {name.rpartition(".")[2] for name, spec in all_specs.items() if spec.dtype}
    assert own == {"e_score_correction_bias"}
    assert all_specs[BIAS].dtype == "float32"


@pytest.mark.parametrize(
    "name", ["language.model.layers.0.mlp.gate.bias", f"{GATE}.lora_A", "mlp.gate.weight", "xmlp.gate.weight"]
)
def test_names_like_those_of_oddities_are_plain(name):
    assert spec_of(name, (4, 6), linear=False) == ParameterSpec(name, (4, 6))


class Layers(nn.Layer):
    """A linear layer, a table of embeddings that is a matrix too, and a bare matrix beside a sublayer."""

    def __init__(self):
        super().__init__()
        self.lm_head = nn.Linear(3, 5)
        self.embed_tokens = nn.Embedding(5, 3)
        self.mlp = nn.Layer()
        self.mlp.gate = nn.Layer()
        self.mlp.gate.weight = self.create_parameter([2, 3])
        self.vector = self.create_parameter([3])
        self.register_buffer("table", paddle.zeros([7]), persistable=False)


def test_specs_are_read_off_layers_without_values():
    with paddle.LazyGuard():
        model = Layers()
    specs = parameter_specs(model)
    assert list(specs) == [name for name, _ in model.named_parameters()]
    assert {name: (spec.shape, spec.linear, spec.either_way) for name, spec in specs.items()} == {
        "vector": ((3,), False, False),
        "lm_head.weight": ((5, 3), True, False),
        "lm_head.bias": ((5,), False, False),
        "embed_tokens.weight": ((5, 3), False, False),
        "mlp.gate.weight": ((2, 3), False, False),
    }
    assert not any(parameter._is_initialized() for parameter in model.parameters())


def converted(
    spec: ParameterSpec, array: np.ndarray, source: TensorLayout, target: TensorLayout
) -> np.ndarray:
    return array.T if spec.must_transpose(array.shape, source, target) else array


def test_there_and_back_and_twice(case):
    for name, array in case.weights.items():
        spec = case.specs[name]
        there = converted(spec, array, TensorLayout.PUBLISHED, TensorLayout.PADDLE)
        assert there.shape == spec.shape_in(TensorLayout.PADDLE)
        back = converted(spec, there, TensorLayout.PADDLE, TensorLayout.PUBLISHED)
        assert np.array_equal(back, array)
        for layout, tensor in ((TensorLayout.PUBLISHED, array), (TensorLayout.PADDLE, there)):
            assert converted(spec, tensor, layout, layout) is tensor


def test_gate_of_paddle_files_either_way_round():
    gate = spec_of(GATE, (8, 48), linear=False)
    assert gate.shapes_in(TensorLayout.PUBLISHED) == ((8, 48),)
    assert gate.shapes_in(TensorLayout.PADDLE) == ((8, 48), (48, 8))
    assert gate.must_transpose((48, 8), TensorLayout.PADDLE, TensorLayout.PADDLE)
    assert not gate.must_transpose((8, 48), TensorLayout.PADDLE, TensorLayout.PADDLE)
    assert not gate.must_transpose((8, 48), TensorLayout.PUBLISHED, TensorLayout.PADDLE)


def test_square_shapes_are_listed_once():
    assert spec_of(GATE, (8, 8), linear=False).shapes_in(TensorLayout.PADDLE) == ((8, 8),)
    output = spec_of(OUTPUT, (4, 6), linear=True)
    assert output.shape == (6, 4)
    assert output.shapes_in(TensorLayout.PADDLE) == ((4, 6),)


@pytest.mark.parametrize(
    ("name", "expert"),
    [
        ("language.model.layers.1.mlp.experts.12.up_proj.weight", 12),
        ("language.model.layers.1.mlp.experts.0.up_proj.lora_A", 0),
        ("language.model.layers.1.mlp.shared_experts.up_proj.weight", None),
        (GATE, None),
    ],
)
def test_expert_of(name, expert):
    assert expert_of(name) == ParameterSpec(name, (1,)).expert == expert
