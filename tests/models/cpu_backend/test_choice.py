"""Which backend a model gets, and what is said where it cannot have the one that is wanted."""

import logging

import pytest

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.kernels import build
from paddlemix_vl2.models.cpu_backend import choice
from paddlemix_vl2.models.cpu_backend.choice import choose_weights


@pytest.mark.parametrize(
    ("dtype", "backend", "weights"),
    [
        ("auto", "auto", "bfloat16"),
        ("bfloat16", "auto", "bfloat16"),
        ("auto", "cpu_kernels", "bfloat16"),
        ("int8", "auto", "int8"),
        ("int8", "cpu_kernels", "int8"),
        ("float32", "auto", None),
        ("auto", "paddle", None),
        ("bfloat16", "paddle", None),
    ],
)
def test_the_choice(dtype, backend, weights, native):
    assert choose_weights(dtype, backend) == weights


@pytest.mark.parametrize(
    ("dtype", "backend", "message"),
    [
        ("auto", "fast", "backend 'fast' is unknown; use auto, paddle, cpu_kernels"),
        ("int8", "paddle", "dtype 'int8' needs backend='cpu_kernels'"),
        ("float32", "cpu_kernels", "computes with bfloat16 or int8 weights, not float32"),
        ("int4", "cpu_kernels", "computes with bfloat16 or int8 weights, not int4"),
    ],
)
def test_choices_that_cannot_be(dtype, backend, message):
    with pytest.raises(ValueError, match=message):
        choose_weights(dtype, backend)


def test_without_kernels_everything_works_and_the_reason_is_said_once(golden, monkeypatch, caplog):
    monkeypatch.setattr(choice, "kernels_problem", lambda: "no C++ compiler (g++)")
    choice._say_once.cache_clear()
    with caplog.at_level(logging.WARNING, logger="paddlemix_vl2"):
        assert choose_weights() is None and choose_weights("bfloat16") is None
    assert [record.message for record in caplog.records] == [
        "Without the faster kernels: no C++ compiler (g++)"
    ]
    model = DeepseekVLV2ForCausalLM.from_pretrained(golden / "mla_greedy", progress=False)
    assert model.weight_dtype == "float32"
    for dtype, backend in (("int8", "auto"), ("auto", "cpu_kernels")):
        with pytest.raises(ValueError, match=r"backend 'cpu_kernels' cannot be used here: no C\+\+ compiler"):
            choose_weights(dtype, backend)


def test_the_switch(monkeypatch):
    monkeypatch.setenv(build.SWITCH_VARIABLE, "0")
    assert choice.kernels_problem() == "PADDLEMIX_VL2_KERNELS=0"


@pytest.mark.parametrize(
    ("engine", "weights"), [("native", "bfloat16"), ("eager", None), ("auto", "bfloat16")]
)
def test_the_old_argument_works_and_names_the_new_one(engine, weights, native, golden):
    with pytest.warns(FutureWarning, match="'engine .*' is now 'backend .*'"):
        model = DeepseekVLV2ForCausalLM.from_pretrained(golden / "mla_greedy", engine=engine, progress=False)
    assert model.execution.packed == (weights is not None)
    with pytest.raises(TypeError, match="no argument 'motor'"):
        DeepseekVLV2ForCausalLM.from_pretrained(golden / "mla_greedy", motor="fast")
