"""A model's names and shapes in the place of the model: what would train, told without building anything."""

import math
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from paddle import nn

from paddlemix_vl2.checkpoints import expected_tensors
from paddlemix_vl2.checkpoints.rules import is_linear, rule_for
from paddlemix_vl2.configuration import DeepseekVLV2Config
from paddlemix_vl2.training.lora import target_patterns, wants_adapters
from paddlemix_vl2.training.parts import set_trainable
from paddlemix_vl2.training.recipe import VL2TrainingArguments

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Names on the hub -> geometry; the whole last component counts.
_PUBLISHED = {"deepseek-vl2-tiny": "tiny", "deepseek-vl2-small": "small", "deepseek-vl2": "base"}


class OutlinedParameter:
    """A parameter without its values.

    Attributes:
        shape: as published; a linear weight is [out, in].
        stop_gradient: whether it stays as it is.
        adapter: parameters of the adapter beside it; 0 where it has none.
        always_float32: whether it is float32 whatever the dtype of the weights.
    """

    def __init__(self, name: str, shape: tuple[int, ...]):
        self.shape = shape
        self.stop_gradient = False
        self.adapter = 0
        self.always_float32 = rule_for(name).dtype == "float32"

    @property
    def size(self) -> int:
        """Number of its values."""
        return math.prod(self.shape)

    @property
    def trained(self) -> int:
        """Number of values that the optimizer moves: its own, or its adapter's, or none."""
        return self.adapter + (0 if self.stop_gradient else self.size)


class Outline:
    """Stands in for a model where only names and shapes are asked for, so that a plan marks what trains by
    the same functions as training itself.

    Args:
        config: the model's.
        arguments: the recipe.

    Raises:
        ValueError: ``lora.target_modules`` names layers that are not there.
    """

    def __init__(self, config: DeepseekVLV2Config, arguments: VL2TrainingArguments):
        tensors = expected_tensors(config)
        self.parameters = {name: OutlinedParameter(name, shape) for name, shape in tensors.items()}
        set_trainable(self, arguments)
        if wants_adapters(arguments):
            self._add_adapters(arguments)

    def named_parameters(self) -> Iterator[tuple[str, OutlinedParameter]]:
        """As ``nn.Layer`` has it."""
        return iter(self.parameters.items())

    def named_sublayers(self) -> Iterator[tuple[str, nn.Layer]]:
        """The linear layers only; one object stands for all of them."""
        linear = nn.Linear(1, 1)
        for name in self.parameters:
            if name.endswith(".weight") and is_linear(name):
                yield name.removesuffix(".weight"), linear

    def _add_adapters(self, arguments: VL2TrainingArguments) -> None:
        adapted = re.compile("|".join(target_patterns(self, arguments)))
        for path, _ in self.named_sublayers():
            if adapted.fullmatch(path):
                parameter = self.parameters[f"{path}.weight"]
                parameter.adapter = arguments.lora.r * sum(parameter.shape)


def find_config(arguments: VL2TrainingArguments) -> tuple[DeepseekVLV2Config, str]:
    """The configuration of the model that a recipe trains, and a line that says where it is from.

    Where the checkpoint is a name on the hub, it is the published geometry in ``configs/model``. Where it is
    a folder that is not there yet, it is that of the recipe in ``configs/train`` that writes the folder: a
    stage can be planned before the one that it follows has run.

    Raises:
        FileNotFoundError: none of these.
    """
    if arguments.model_config:
        return DeepseekVLV2Config.from_json(arguments.model_config), f"new, {arguments.model_config}"
    return _config_of_checkpoint(str(arguments.model_name_or_path), seen=())


def _config_of_checkpoint(name: str, seen: tuple[str, ...]) -> tuple[DeepseekVLV2Config, str]:
    folder = Path(name).expanduser()
    if (folder / "config.json").is_file():  # a run that has only begun has a folder without it
        return DeepseekVLV2Config.from_json(folder), name
    geometry = _PUBLISHED.get(name.rpartition("/")[2]) if name.count("/") == 1 else None
    if geometry:
        file = CONFIGS / "model" / f"{geometry}.json"
        return DeepseekVLV2Config.from_json(file), f"{name} on the hub, geometry of configs/model/{file.name}"
    recipe = _recipe_that_writes(name)
    if recipe is None or name in seen:
        raise FileNotFoundError(
            f"{name}: no such folder, no published model, and no recipe in configs/train writes it; nothing "
            "says what this model looks like"
        )
    file, values = recipe
    origin = f"{name}, not found here; configs/train/{file.name} writes it, from "
    if values.get("model_config"):
        # Paths in the recipes start at the repository's root.
        config = DeepseekVLV2Config.from_json(CONFIGS.parent / values["model_config"])
        return config, origin + f"{values['model_config']}"
    config, before = _config_of_checkpoint(str(values.get("model_name_or_path")), (*seen, name))
    return config, origin + before


def _recipe_that_writes(folder: str) -> tuple[Path, dict] | None:
    for file in sorted((CONFIGS / "train").rglob("*.yaml")):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        if Path(values.get("output_dir", "")) == Path(folder):
            return file, values
    return None
