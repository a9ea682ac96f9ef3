"""What a model computes with, and a model that has some of the experts."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from paddlemix_vl2 import DeepseekVLV2ForCausalLM, device
from paddlemix_vl2.models import pretrained
from paddlemix_vl2.models.layers.execution import ExecutionConfig
from paddlemix_vl2.models.layers.mlp import Experts
from paddlemix_vl2.models.pretrained import plan_execution

SOME = SimpleNamespace(experts=range(4, 8))  # a dispatcher, as far as a model that only loads needs one


def test_the_execution_on_this_device(monkeypatch):
    monkeypatch.setattr(device, "is_gpu", lambda: False)
    execution = plan_execution("auto", "paddle")
    assert (execution.device, execution.backend, execution.weight_dtype) == ("cpu", "paddle", "float32")
    assert (execution.fused_attention, execution.group_experts, execution.cache_dtype) == (False, False, None)
    assert execution.parameter_dtype == "float32" and not execution.packed
    assert plan_execution("bfloat16", "paddle").parameter_dtype == "bfloat16"


def test_the_execution_on_a_gpu(monkeypatch):
    """Fused attention, and grouped experts where the kernels are not asked for and all experts are here."""
    monkeypatch.setattr(device, "is_gpu", lambda: True)
    monkeypatch.setattr(paddle.amp, "is_bfloat16_supported", lambda: True)
    execution = plan_execution()
    assert (execution.device, execution.backend, execution.weight_dtype) == ("gpu", "paddle", "bfloat16")
    assert execution.fused_attention and execution.group_experts
    assert not plan_execution("float32", "paddle").group_experts  # as for training
    assert not plan_execution(single_process=False).group_experts


def test_the_execution_on_the_kernels(native):
    for dtype, weights in (("auto", "bfloat16"), ("int8", "int8")):
        execution = plan_execution(dtype)
        assert execution.packed and execution.weight_dtype == weights
        assert (execution.parameter_dtype, execution.cache_dtype) == ("bfloat16", "bfloat16")
        assert execution.attention_fn is not None and not execution.fused_attention


def test_experts_over_processes_run_on_paddle(monkeypatch):
    assert plan_execution(single_process=False).backend == "paddle"
    for options in ({"backend": "cpu_kernels"}, {"dtype": "int8"}):
        with pytest.raises(ValueError, match="runs all experts in one process; use the backend 'paddle'"):
            plan_execution(**options, single_process=False)


def test_some_of_the_experts(golden, tmp_path):
    """Those alone are read; the specs are those of the whole, and saving them needs the others."""
    model = DeepseekVLV2ForCausalLM.from_pretrained(golden / "mla_greedy", dispatcher=SOME, progress=False)
    whole = DeepseekVLV2ForCausalLM.from_pretrained(golden / "mla_greedy", "float32", progress=False)
    assert model.local_experts == range(4, 8) and model.parameter_specs() == whole.parameter_specs()
    parameters = dict(whole.named_parameters())
    held = dict(model.named_parameters())
    missing = {name for name in parameters if name not in held}
    assert missing and all(int(name.split(".experts.")[1].split(".")[0]) < 4 for name in missing)
    for name, parameter in held.items():
        assert np.array_equal(parameter.numpy(), parameters[name].numpy()), name
    with pytest.raises(ValueError, match="holds some of the experts only; save with shard_plan="):
        model.save_pretrained(tmp_path)


@paddle.no_grad()
def test_experts_are_grouped_where_the_execution_says_so(golden, monkeypatch):
    """As on a GPU: after loading, without a change of what is answered."""
    plain = DeepseekVLV2ForCausalLM.from_pretrained(golden / "mla_greedy", "float32", progress=False)
    monkeypatch.setattr(pretrained, "plan_execution", lambda *_, **__: ExecutionConfig(group_experts=True))
    grouped = DeepseekVLV2ForCausalLM.from_pretrained(golden / "mla_greedy", progress=False)
    of_layers = [
        [bool(layer.grouped) for layer in model.sublayers() if isinstance(layer, Experts)]
        for model in (plain, grouped)
    ]
    assert of_layers == [[False, False], [True, True]]
    ids = paddle.to_tensor([[5, 6, 7]])
    assert float((grouped(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max()) < 1e-5


def test_the_dtype_of_the_weights_is_that_of_the_config(golden):
    for dtype in ("float32", "bfloat16"):
        model = DeepseekVLV2ForCausalLM.from_pretrained(
            golden / "mla_greedy", dtype=dtype, backend="paddle", progress=False
        )
        assert model.config.dtype == model.weight_dtype == dtype and not model.training


def test_another_family_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["MultiModalityCausalLM"]}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"config.json: .*MultiModalityCausalLM.* is DeepSeek-VL or Janus"):
        DeepseekVLV2ForCausalLM.from_pretrained(tmp_path)
