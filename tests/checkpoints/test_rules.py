"""The table of rules covers every published name once, and converts both ways."""

from pathlib import Path

import numpy as np
import pytest

from paddlemix_vl2.checkpoints import expected_tensors
from paddlemix_vl2.checkpoints.rules import (
    RULES,
    Layout,
    is_linear,
    must_transpose,
    rule_for,
    shape_in,
    shapes_in,
)
from paddlemix_vl2.configuration import DeepseekVLV2Config

TESTS = Path(__file__).parents[1]
CONFIG_FILES = sorted(
    [*(TESTS.parent / "configs" / "model").glob("*.json"), *TESTS.glob("golden/*/config.json")]
)
GATE = "language.model.layers.1.mlp.gate.weight"
OUTPUT = "language.model.layers.0.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def all_tensors() -> dict[str, tuple[int, ...]]:
    """Every name that a config of this repository gives, and those of attention_bias."""
    assert len(CONFIG_FILES) >= 8
    configs = [DeepseekVLV2Config.from_json(file) for file in CONFIG_FILES]
    for config in list(configs):
        values = config.to_dict()
        values["language_config"]["attention_bias"] = True
        configs.append(DeepseekVLV2Config(**values))
    return {name: shape for config in configs for name, shape in expected_tensors(config).items()}


def test_every_name_has_exactly_one_rule(all_tensors):
    for name in all_tensors:
        rule_for(name)


def test_every_rule_is_used_and_has_a_reason(all_tensors):
    used = {rule_for(name) for name in all_tensors}
    assert [rule.pattern for rule in RULES if rule not in used or not rule.reason] == []


def test_linear_weights_are_the_matrices_but_two(all_tensors):
    for name, shape in all_tensors.items():
        matrix = len(shape) == 2 and not name.endswith(("embed_tokens.weight", "mlp.gate.weight"))
        assert is_linear(name) == matrix, name


@pytest.mark.parametrize(
    "name",
    ["language.model.layers.0.mlp.gate.bias", "vision.head.weight", "x" + OUTPUT, OUTPUT + ".lora_A", ""],
)
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match="0 rules fit"):
        rule_for(name)


def test_only_the_correction_bias_has_a_dtype_of_its_own(all_tensors):
    own = {name.rpartition(".")[2] for name in all_tensors if rule_for(name).dtype}
    assert own == {"e_score_correction_bias"}
    assert rule_for("language.model.layers.1.mlp.gate.e_score_correction_bias").dtype == "float32"


def converted(name: str, array: np.ndarray, published: tuple, source: Layout, target: Layout) -> np.ndarray:
    return array.T if must_transpose(name, array.shape, published, source, target) else array


def test_there_and_back_and_twice(case):
    for name, array in case.weights.items():
        there = converted(name, array, array.shape, Layout.PUBLISHED, Layout.PADDLE)
        assert there.shape == shape_in(Layout.PADDLE, name, array.shape)
        back = converted(name, there, array.shape, Layout.PADDLE, Layout.PUBLISHED)
        assert np.array_equal(back, array)
        for layout, tensor in ((Layout.PUBLISHED, array), (Layout.PADDLE, there)):
            assert converted(name, tensor, array.shape, layout, layout) is tensor


def test_gate_of_paddle_files_either_way_round():
    published = (8, 48)
    assert shapes_in(Layout.PUBLISHED, GATE, published) == ((8, 48),)
    assert shapes_in(Layout.PADDLE, GATE, published) == ((8, 48), (48, 8))
    assert must_transpose(GATE, (48, 8), published, Layout.PADDLE, Layout.PADDLE)
    assert not must_transpose(GATE, (8, 48), published, Layout.PADDLE, Layout.PADDLE)
    assert not must_transpose(GATE, (8, 48), published, Layout.PUBLISHED, Layout.PADDLE)


def test_square_shapes_are_listed_once():
    assert shapes_in(Layout.PADDLE, GATE, (8, 8)) == ((8, 8),)
    assert shapes_in(Layout.PADDLE, OUTPUT, (6, 4)) == ((4, 6),)
