"""One name for every family: the demo checkpoint loads through the Auto classes as through its own."""

from pathlib import Path

import numpy as np
import pytest

from paddlemix_vl2 import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    DeepseekVLV2Config,
    DeepseekVLV2ForCausalLM,
    DeepseekVLV2Processor,
)

DEMO = Path(__file__).parents[1] / "paddlemix_vl2" / "demo" / "checkpoint"


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(DEMO, dtype="float32", backend="paddle", progress=False)


def test_the_model_is_of_its_own_class(model, demo_model):
    assert type(model) is DeepseekVLV2ForCausalLM and not model.training
    assert model.config.to_dict() == demo_model.config.to_dict()
    own = demo_model.state_dict()
    assert own.keys() == model.state_dict().keys()
    assert all(
        np.array_equal(tensor.numpy(), own[name].numpy()) for name, tensor in model.state_dict().items()
    )


def test_config_and_processor_too(demo_processor):
    assert type(AutoConfig.from_pretrained(DEMO)) is DeepseekVLV2Config
    processor = AutoProcessor.from_pretrained(str(DEMO), mask_prompt=True)
    assert type(processor) is DeepseekVLV2Processor and processor.mask_prompt
    assert processor.candidate_resolutions == demo_processor.candidate_resolutions


def test_model_and_processor_answer(model, demo_model, demo_questions):
    processor = AutoProcessor.from_pretrained(DEMO)
    batch = processor(conversations=[[question] for question in demo_questions[:2]])
    ids, _ = model.generate(**batch, max_new_tokens=16)
    assert np.array_equal(ids.numpy(), demo_model.generate(**batch, max_new_tokens=16)[0].numpy())


def test_arguments_are_passed_on():
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype="bfloat16", backend="paddle", progress=False)
    assert model.weight_dtype == "bfloat16"
    with pytest.raises(ValueError, match="'gpu_kernels'"):
        AutoModelForCausalLM.from_pretrained(DEMO, backend="gpu_kernels")
    with pytest.raises(TypeError, match="no argument 'dtpye'"):
        AutoModelForCausalLM.from_pretrained(DEMO, dtpye="float32")
    with pytest.raises(ValueError, match="mask_promt"):
        AutoProcessor.from_pretrained(DEMO, mask_promt=True)


@pytest.mark.parametrize("auto", [AutoConfig, AutoModelForCausalLM, AutoProcessor])
def test_no_such_checkpoint(auto, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        auto.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(
        ValueError, match=r"config\.json: .* is a Llama language model, which is not supported"
    ):
        auto.from_pretrained(tmp_path)
