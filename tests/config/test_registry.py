"""Which family a config.json is of, and what is said of those that are not supported."""

import json

import pytest

from paddlemix_vl2 import AutoConfig, DeepseekVLV2Config, DeepseekVLV2ForCausalLM
from paddlemix_vl2.config import registry
from paddlemix_vl2.config.base import PublishedConfig
from paddlemix_vl2.config.registry import (
    FAMILIES,
    Family,
    check_family,
    family_of,
    find_family,
    register_family,
)

VL2 = "DeepseekVLV2ForCausalLM"
# Heads of the published config.json files of other families -> what the message calls them.
OTHERS = [
    ({"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl"}, "Qwen2-VL"),
    ({"model_type": "qwen2_vl"}, "Qwen2-VL"),
    ({"architectures": ["MultiModalityCausalLM"], "model_type": "multi_modality"}, "DeepSeek-VL or Janus"),
    ({"model_type": "multi_modality"}, "DeepSeek-VL or Janus"),
    ({"architectures": ["DeepseekOCRForCausalLM"], "model_type": "deepseek_vl_v2"}, "DeepSeek-OCR"),
    ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, "a Llama language model"),
    ({"architectures": ["DeepseekV3ForCausalLM"]}, "a DeepSeek-V3 language model"),
    ({"architectures": ["BertModel"], "model_type": "bert"}, "a family that this package does not know"),
    ({"model_type": "bert"}, "a family that this package does not know"),
    ({}, "a family that this package does not know"),
    ({"architectures": [], "model_type": None}, "a family that this package does not know"),
    ({"architectures": VL2}, "a family that this package does not know"),  # a text where a list must be
]


@pytest.fixture
def written(tmp_path):
    """values -> a folder whose config.json holds them."""

    def write(values: dict):
        (tmp_path / "config.json").write_text(json.dumps(values))
        return tmp_path

    return write


@pytest.mark.parametrize(
    "values",
    [
        {"architectures": [VL2], "model_type": "deepseek_vl_v2"},
        {"architectures": [VL2], "model_type": "something else"},
        {"architectures": ["Wrapper", VL2]},
        {"model_type": "deepseek_vl_v2"},
        {"architectures": [], "model_type": "deepseek_vl_v2"},
        {"architectures": None, "model_type": "deepseek_vl_v2"},
    ],
)
def test_deepseek_vl2(values, written):
    assert family_of(values, "here") is FAMILIES[VL2]
    folder = written(values)
    assert find_family(folder) is find_family(folder / "config.json") is FAMILIES[VL2]


@pytest.mark.parametrize(("values", "what"), OTHERS)
def test_other_families_are_named(values, what, written):
    folder = written(values)
    with pytest.raises(ValueError) as error:
        find_family(folder)
    message = str(error.value)
    assert message.startswith(f"{folder / 'config.json'}: ") and "\n" not in message
    assert f" is {what}, which is not supported; supported: " in message
    assert f"DeepSeek-VL2 ({VL2})" in message


def test_what_the_file_says_is_quoted():
    with pytest.raises(ValueError, match=r"^x: architectures \['BertModel'\] is"):
        family_of({"architectures": ["BertModel"], "model_type": "deepseek_vl_v2"}, "x")
    with pytest.raises(ValueError, match=r"^x: model_type 'bert' is"):
        family_of({"model_type": "bert"}, "x")


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        find_family(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        find_family(tmp_path)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)
def test_a_family_names_classes_that_are_there(family):
    config, model, processor = (family.load(kind) for kind in ("config", "model", "processor"))
    assert model.__name__ == family.architecture and model.config_class is config
    assert issubclass(config, PublishedConfig) and callable(processor.from_pretrained)


def test_a_new_family_is_known_to_all(written, monkeypatch):
    monkeypatch.setattr(registry, "FAMILIES", dict(FAMILIES))
    known = FAMILIES[VL2]
    new = Family("New", "NewForCausalLM", known.config, known.model, known.processor)
    register_family(new)
    assert find_family(written({"architectures": ["NewForCausalLM"]})) is new
    with pytest.raises(ValueError, match=r"supported: .*DeepSeek-VL2 .*, New \(NewForCausalLM\)"):
        family_of({"architectures": ["Other"]}, "x")
    # Two families of one model_type: architectures must say which it is.
    with pytest.raises(ValueError, match="model_type 'deepseek_vl_v2' is"):
        family_of({"model_type": "deepseek_vl_v2"}, "x")


@pytest.mark.parametrize(
    "values", [{}, {"model_type": "deepseek_vl_v2"}, {"architectures": [VL2], "model_type": "x"}]
)
def test_a_class_reads_its_own_family(values):
    check_family(values, DeepseekVLV2Config, "x")


@pytest.mark.parametrize(("values", "what"), [other for other in OTHERS if other[0].get("model_type")])
def test_a_class_refuses_other_families(values, what):
    with pytest.raises(ValueError, match=rf"^x: .* is {what}, which is not supported"):
        check_family(values, DeepseekVLV2Config, "x")


def test_a_class_refuses_a_supported_family_that_is_not_its_own():
    class Other(DeepseekVLV2Config):
        pass

    with pytest.raises(ValueError) as error:
        check_family({"architectures": [VL2]}, Other, "x")
    assert str(error.value) == (
        f"x: is DeepSeek-VL2 ({VL2}), which Other does not read; use AutoModelForCausalLM, or its own class"
    )


def test_auto_config(golden, tmp_path):
    folder = golden / "mla_noaux_tc"
    expected = DeepseekVLV2Config.from_json(folder).to_dict()
    for place in (folder, str(folder), folder / "config.json"):
        config = AutoConfig.from_pretrained(place)
        assert type(config) is DeepseekVLV2Config and config.to_dict() == expected
    with pytest.raises(FileNotFoundError, match="nowhere"):
        AutoConfig.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "read",
    [DeepseekVLV2ForCausalLM.from_pretrained, DeepseekVLV2Config.from_json, AutoConfig.from_pretrained],
)
def test_a_folder_of_another_family_is_answered_in_one_line(read, written):
    """Before anything is built or any other key of the file is looked at."""
    folder = written(
        {"architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "vision_config": 5}
    )
    with pytest.raises(ValueError) as error:
        read(folder)
    assert str(error.value) == (
        f"{folder / 'config.json'}: architectures ['Qwen2VLForConditionalGeneration'] is Qwen2-VL, which is "
        f"not supported; supported: {supported()}"
    )


def supported() -> str:
    return ", ".join(f"{family.name} ({family.architecture})" for family in FAMILIES.values())
