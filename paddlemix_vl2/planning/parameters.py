"""What a recipe would train, from the config alone."""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from paddlemix_vl2.checkpoints import ParameterSpec
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.hub import CONFIG_FILE
from paddlemix_vl2.models.meta import linear_paths, model_specs
from paddlemix_vl2.training.lora import target_patterns, wants_adapters
from paddlemix_vl2.training.parts import trains_in_full
from paddlemix_vl2.training.recipe import VL2TrainingArguments

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# Names on the hub -> geometry; the whole last component counts.
_PUBLISHED = {"deepseek-vl2-tiny": "tiny", "deepseek-vl2-small": "small", "deepseek-vl2": "base"}


@dataclass(frozen=True)
class PlannedParameter:
    """A parameter and what a recipe does with it.

    Attributes:
        spec: name and shape.
        in_full: whether the optimizer moves it itself.
        adapter: values of the adapter beside it; 0 where it has none.
    """

    spec: ParameterSpec
    in_full: bool
    adapter: int = 0

    @property
    def size(self) -> int:
        """Number of its values."""
        return self.spec.size

    @property
    def trained(self) -> int:
        """Number of values that the optimizer moves: its own, or its adapter's, or none."""
        return self.adapter + (self.size if self.in_full else 0)

    @property
    def always_float32(self) -> bool:
        """Whether it is float32 whatever the dtype of the weights."""
        return self.spec.dtype == "float32"


def plan_parameters(
    config: DeepseekVLV2Config, arguments: VL2TrainingArguments
) -> dict[str, PlannedParameter]:
    """Every parameter of the model by its path.

    Raises:
        ValueError: ``lora.target_modules`` names layers that are not there.
    """
    specs = model_specs(config)
    adapted = re.compile("(?!)")
    if wants_adapters(arguments):
        adapted = re.compile("|".join(target_patterns(linear_paths(specs), arguments)))
    planned = {}
    for name, spec in specs.items():
        has_adapter = spec.linear and adapted.fullmatch(name.removesuffix(".weight"))
        adapter = arguments.lora.r * sum(spec.shape) if has_adapter else 0
        planned[name] = PlannedParameter(spec, trains_in_full(name, arguments), adapter)
    return planned


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
    if (folder / CONFIG_FILE).is_file():  # a run that has only begun has a folder without it
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
