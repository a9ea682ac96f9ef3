"""The families: which classes make a model of the ``architectures`` in a ``config.json``.

A family is a config, a model and a processor; the model brings its vision encoder and its layout. The rows
name classes as text, so that reading a config does not import a model.
"""

import importlib
from dataclasses import dataclass
from pathlib import Path

from paddlemix_vl2.config.base import PublishedConfig, config_file
from paddlemix_vl2.files import read_object


@dataclass(frozen=True)
class Family:
    """Attributes:
    name: as users know it.
    architecture: the value of ``architectures``, which is the name of the published model class.
    config, model, processor: ``module:class``.
    """

    name: str
    architecture: str
    config: str
    model: str
    processor: str

    def load(self, kind: str) -> type:
        """The class that ``config``, ``model`` or ``processor`` names."""
        module, _, name = getattr(self, kind).partition(":")
        return getattr(importlib.import_module(module), name)

    @property
    def config_class(self) -> type[PublishedConfig]:
        """The class of its configs."""
        return self.load("config")


FAMILIES: dict[str, Family] = {}
# What other values of ``architectures`` and ``model_type`` are, for the error.
_OTHERS = {
    "MultiModalityCausalLM": "DeepSeek-VL or Janus",
    "multi_modality": "DeepSeek-VL or Janus",
    "DeepseekOCRForCausalLM": "DeepSeek-OCR",
    "DeepseekV2ForCausalLM": "a DeepSeek-V2 language model",
    "deepseek_v2": "a DeepSeek-V2 language model",
    "DeepseekV3ForCausalLM": "a DeepSeek-V3 language model",
    "deepseek_v3": "a DeepSeek-V3 language model",
    "DeepseekForCausalLM": "a DeepSeekMoE language model",
    "LlamaForCausalLM": "a Llama language model",
    "Qwen2VLForConditionalGeneration": "Qwen2-VL",
    "qwen2_vl": "Qwen2-VL",
}


def register_family(family: Family) -> None:
    """Make a family known to the Auto classes; one of the same architecture is replaced."""
    FAMILIES[family.architecture] = family


register_family(
    Family(
        "DeepSeek-VL2",
        "DeepseekVLV2ForCausalLM",
        "paddlemix_vl2.config.deepseek_vl2:DeepseekVLV2Config",
        "paddlemix_vl2.models.families.deepseek_vl2:DeepseekVLV2ForCausalLM",
        "paddlemix_vl2.processing.deepseek_vl2:DeepseekVLV2Processor",
    )
)


def find_family(path: str | Path) -> Family:
    """The family of a checkpoint folder, or of its ``config.json``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not JSON, or of a family that is not supported; the message says which.
    """
    file = config_file(path)
    return family_of(read_object(file), file)


def family_of(values: dict, place) -> Family:
    """The family of the content of a ``config.json``; ``place`` is what errors begin with."""
    named = values.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list) else []
    for name in architectures:
        if name in FAMILIES:
            return FAMILIES[name]
    model_type = values.get("model_type")
    known = ", ".join(f"{family.name} ({family.architecture})" for family in FAMILIES.values())
    if not architectures:
        by_type = [family for family in FAMILIES.values() if family.config_class.model_type == model_type]
        if len(by_type) == 1:
            return by_type[0]
    described = f"architectures {architectures}" if architectures else f"model_type {model_type!r}"
    what = next((_OTHERS[key] for key in (*architectures, model_type) if key in _OTHERS), None)
    raise ValueError(
        f"{place}: {described} is {what or 'a family that this package does not know'}, which is not "
        f"supported; supported: {known}"
    )


def check_family(values: dict, config_class: type[PublishedConfig], place) -> None:
    """Refuse the content of a ``config.json`` that is of another family than the class.

    Raises:
        ValueError: what it is, and what the class reads.
    """
    if not values.get("architectures") and values.get("model_type") in (None, config_class.model_type):
        return
    family = family_of(values, place)
    if family.config_class is not config_class:
        raise ValueError(
            f"{place}: is {family.name} ({family.architecture}), which {config_class.__name__} does not "
            "read; use AutoModelForCausalLM, or its own class"
        )
